"""What each side needs to be installed: the server no training code, the client grpcio and protobuf alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import feature_store
import service
import tidemark

IMPORTED = """
import sys
import {module}
print(" ".join(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""

CLIENT_ALONE = """
import sys

class NothingElseIsInstalled:
    def find_spec(self, name, path=None, target=None):
        installed = {"grpc", "google", "tidemark", "typing_extensions", "cython_runtime"}
        if name.partition(".")[0] not in installed | sys.stdlib_module_names or name.startswith("google.rpc"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NothingElseIsInstalled())
from tidemark import CallFailedError, ScoringClient
try:
    ScoringClient("127.0.0.1:1", timeout_s=0.2).score("7")
except CallFailedError as error:
    print(error.problem.code.name)
"""


@cache
def output_of(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_server_imports_no_training_code() -> None:
    result = output_of(IMPORTED.format(module="service.app.server"))
    assert {"redis", "grpc"} <= result
    assert not result & {"training", "sklearn", "skl2onnx", "onnx", "pandas", "duckdb", "scipy", "rich"}


def test_onnxruntime_is_imported_when_a_graph_is_loaded() -> None:
    """Importing it starts a thread, so a process that has only imported the server can still fork."""
    assert "onnxruntime" not in output_of(IMPORTED.format(module="service.app.server"))


def test_the_client_works_with_grpc_and_protobuf_alone() -> None:
    assert output_of(CLIENT_ALONE) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def test_training_imports_no_server_and_draws_nothing_until_there_is_a_report() -> None:
    result = output_of(IMPORTED.format(module="training.__main__"))
    assert {"sklearn", "onnx", "duckdb"} <= result
    assert not result & {"service", "grpc", "tidemark", "uvloop", "matplotlib"}


def test_a_load_test_needs_no_server_and_a_server_no_load_test() -> None:
    result = output_of(IMPORTED.format(module="tidemark.load.cli"))
    assert {"rich", "numpy", "zttp", "hdrh"} <= result
    assert not result & {
        "feature_store",
        "service",
        "redis",
        "onnxruntime",
        "training",
        "sklearn",
        "onnx",
        "duckdb",
        "matplotlib",
        "locust",
    }
    assert "hdrh" not in output_of(IMPORTED.format(module="service.app.server"))
    # Each process that sends waits for what it imports.
    assert not output_of(IMPORTED.format(module="tidemark.load.sending.sender")) & {
        "rich",
        "jinja2",
        "redis",
        "pydantic",
    }


@cache
def imports(path: Path) -> set[str]:
    """Top-level packages that a module imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    return {name.partition(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("zttp", ["transport/lean/http2.py", "load/sending/connection.py"]),
        ("redis", ["online/transport/clients.py", "online/transport/connections.py"]),
        ("hiredis", ["online/transport/connections.py"]),
        ("onnxruntime", ["bundles/onnx_session.py"]),
        ("hdrh", ["load/results.py"]),
        ("locust", ["load/locustfile.py"]),
        ("prometheus_client", ["telemetry/prometheus.py"]),
        ("opentelemetry", ["telemetry/tracing.py"]),
    ],
)
def test_few_modules_know_each_library_that_may_be_replaced(library: str, only: list[str]) -> None:
    result = [
        path.relative_to(folder).as_posix()
        for folder in (Path(package.__path__[0]) for package in (feature_store, service, tidemark))
        for path in folder.rglob("*.py")
        if library in imports(path)
    ]
    assert sorted(result) == sorted(only)
