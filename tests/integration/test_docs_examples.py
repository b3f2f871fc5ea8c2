"""The code blocks of the tutorials and how-to guides run, in order, on a real server and a real Redis."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import redis

from feature_store.__main__ import cli as feature_store_cli
from feature_store.embedded_redis import embedded_redis
from tests.conftest import Trained
from tests.docs_pages import (
    DOCS,
    LANGUAGES,
    PORTS,
    ROOT,
    Block,
    Reader,
    blocks,
    commands_to_first_score,
    free_ports,
    pages,
    reading,
)
from tests.integration.test_training_shapes import write_campaign, write_crm, write_log, write_orders

IN_EVERY_RUN: Final = ("how-to/record-events.md", "tutorials/your-own-shop.md")
"""The pages that every run of the tests follows; the others are followed with ``--full``."""
ON_SAMPLE: Final = ("tutorials/first-score.md", "tutorials/sample-notebook.ipynb")
"""The first page starts the server that the second one asks."""
PATIENT: Final = {
    "TIDEMARK_MAX_QUEUE_S": "60",
    "TIDEMARK_MAX_EVENT_QUEUE_S": "60",
    "TIDEMARK_REDIS_TIMEOUT_S": "60",
}
"""However slow the machine is, nothing is shed, and Redis is not away."""


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def parameters() -> list[object]:
    return [
        pytest.param(page, id=name(page), marks=[] if name(page) in IN_EVERY_RUN else [pytest.mark.full])
        for page in pages()
        if name(page) not in ON_SAMPLE
    ]


@dataclass(frozen=True)
class Desk:
    """Ports, and a Redis on the first one."""

    ports: dict[str, str]
    redis_url: str

    @property
    def variables(self) -> dict[str, str]:
        """What replaces the default port where a page does not name it."""
        port = self.ports["50051"]
        return {"PORT": port, "TIDEMARK_PORT": port, "TIDEMARK_TARGET": f"127.0.0.1:{port}"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    with embedded_redis("--port", ports["6379"], data=tmp_path_factory.mktemp("redis")) as _:
        yield Desk(ports, f"redis://localhost:{ports['6379']}")


def shared_clone(folder: Path) -> None:
    """A clone whose environment is this one and is up to date, so that ``make install`` finds nothing to do."""
    for each in ("Makefile", "README.md", "pyproject.toml", "requirements"):
        (folder / each).symlink_to(ROOT / each)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for stamp in (".uv", ".run", ".dev", ".wheel"):
        (folder / ".venv" / stamp).touch()


def prepared_shop(folder: Path, small: Trained, url: str) -> None:
    """Where how-to guides begin: a config, a bundle of it, and its customers in Redis."""
    for path in small.shop.folder.iterdir():
        shutil.copy(path, folder)
    write_orders(folder / "orders.csv", customers=400, days=300, per_day=0.1)
    write_log(folder / "log.csv")
    write_crm(folder / "crm.csv")
    write_campaign(folder / "campaign.csv")
    shutil.copytree(small.registry, folder / "models", symlinks=True)
    shutil.copy(f"{small.registry}.key", folder / "models.key")  # of the hashes by which `compare` finds customers
    with redis.Redis.from_url(url) as connection:
        connection.flushall()
    options = ["--registry", str(folder / "models"), "--redis", url, "--shift-to-now"]
    feature_store_cli.main(["load", str(folder / "shop.toml"), *options], standalone_mode=False)


@pytest.mark.parametrize("page", parameters())
def test_the_page_runs_as_it_stands(page: Path, desk: Desk, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    steps = blocks(page)
    with reading(tmp_path, desk.ports, PATIENT | desk.variables) as reader:
        if page.parent.name == "tutorials":
            shared_clone(tmp_path)
        else:
            prepared_shop(tmp_path, request.getfixturevalue("small"), desk.redis_url)
            if any("50051" in step.text for step in steps) and not any(step.server for step in steps):
                serve(reader)
        reader.follow(steps)


def serve(reader: Reader) -> None:
    reader.follow([Block("bash", "tidemark serve --registry models --redis redis://localhost:6379\n", 0)])


@pytest.mark.full
def test_the_tutorials_on_the_sample_and_the_code_of_the_readme_run_as_they_stand(
    desk: Desk, tmp_path: Path, sample_registry: Path
) -> None:
    shared_clone(tmp_path)
    shutil.copytree(sample_registry, tmp_path / "build" / "registry", symlinks=True)
    with reading(tmp_path, desk.ports, PATIENT | desk.variables) as reader:
        for page in ON_SAMPLE:
            reader.follow(blocks(DOCS / page))
        reader.follow([block for block in blocks(ROOT / "README.md") if block.language == "python"])


def test_every_code_block_is_run_or_is_the_output_of_one_that_is() -> None:
    """The figure ``docs_examples``: blocks that the tests above run or compare, of all blocks."""
    for page in pages():
        steps = blocks(page)
        assert {step.language for step in steps} <= set(LANGUAGES), name(page)
        for before, step in zip([None, *steps], steps, strict=False):
            if step.language == "text":
                assert before is not None, f"{name(page)}: output of nothing"
                assert before.language in ("bash", "python"), f"{name(page)}: line {step.line}"
    assert {name(page) for page in pages() if blocks(page)} >= {*IN_EVERY_RUN, *ON_SAMPLE}


def test_the_own_shop_has_its_first_scores_after_five_commands() -> None:
    """The figure ``first_score_commands``."""
    assert commands_to_first_score() <= 5


def test_pages_do_not_depend_on_the_machine() -> None:
    for page in pages():
        assert os.fspath(ROOT) not in page.read_text()
