"""The client as others install it: its wheel, grpcio and protobuf in an environment with nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
INSTALLED = ("grpcio", "protobuf", "typing_extensions")
USE = """
import asyncio, inspect, sys
import tidemark
from tidemark import *

assert sorted(tidemark.__all__) == tidemark.__all__ or set(tidemark.__all__) <= set(dir(tidemark))
ended = []

def note(error):
    ended.append(error.problem.code.name)

options = {"target": "127.0.0.1:1", "timeout_s": 0.1}
asked = {
    "ScoringClient": [lambda c: c.score("7"), lambda c: c.score_many(["7"])],
    "EventClient": [lambda c: c.record([Event("7", "view")]), lambda c: c.stream([Event("7", "view")], timeout_s=0.1)],
    "CustomerClient": [lambda c: c.get("7"), lambda c: c.merge("7", "8"), lambda c: c.delete("7"),
                       lambda c: c.set_consent("7", scoring=False)],
    "ModelClient": [lambda c: c.serving(), lambda c: c.list(), lambda c: c.activate("v"),
                    lambda c: c.set_rollout(Canary("v", 0.1)), lambda c: c.set_rollout(Shadow("v")),
                    lambda c: c.clear_rollout()],
}

async def use_async():
    for name, calls in asked.items():
        async with getattr(tidemark, "Async" + name)(**options) as client:
            for call in calls:
                try:
                    await call(client)
                except CallFailedError as error:
                    note(error)

for name, calls in asked.items():
    with getattr(tidemark, name)(**options) as client:
        for call in calls:
            try:
                call(client)
            except CallFailedError as error:
                note(error)
asyncio.run(use_async())
print(len(ended), *sorted(set(ended)))
print(*sorted({module.partition(".")[0] for module in sys.modules} - sys.stdlib_module_names))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a fresh environment with the client's wheel and what it depends on."""
    wheels = sorted((ROOT / "build" / "dist").glob("tidemark_client-*.whl"))
    if not wheels:
        pytest.skip("no wheel of the client in build/dist: run this by make test")
    venv.create(tmp_path / "venv", with_pip=False)
    interpreter = tmp_path / "venv" / "bin" / "python"
    command = [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    for name in INSTALLED:
        for file in distribution(name).files or ():
            if file.parts[0] != ".." and not (site / file.parts[0]).exists():
                (site / file.parts[0]).symlink_to(Path(str(distribution(name).locate_file(file.parts[0]))))
    zipfile.ZipFile(wheels[-1]).extractall(site)
    return interpreter


def test_all_clients_work_where_only_grpcio_and_protobuf_are_installed(python: Path) -> None:
    done = subprocess.run([python, "-I", "-c", USE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ended, modules = done.stdout.splitlines()
    count, *codes = ended.split()
    assert int(count) == 28
    assert set(codes) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    others = {"google", "grpc", "tidemark", "typing_extensions", "cython_runtime"}
    assert {name for name in modules.split() if not name.startswith("_")} <= others


def test_the_wheel_of_the_client_has_nothing_of_the_server(python: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('service', 'feature_store', 'training') if u.find_spec(n)])"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_requirements_of_the_client_are_grpcio_and_protobuf() -> None:
    required = {
        re.split("[<>=; ]", line)[0]
        for line in distribution("tidemark-client").requires or ()
        if "extra ==" not in line
    }
    assert required == {"grpcio", "protobuf"}


def test_a_name_that_is_exported_is_documented() -> None:
    code = (
        "import tidemark; print([n for n in tidemark.__all__ if n.isidentifier() and not getattr(tidemark, n).__doc__])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
