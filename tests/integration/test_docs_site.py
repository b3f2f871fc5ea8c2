"""The documentation builds without a warning, has all that the code has, and works in a browser without a network."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any, Final

import click
import pytest
from pydantic import BaseModel

from feature_store.archive.reader import ALIAS_COLUMNS, COLUMNS
from feature_store.bundles.bundle import Manifest
from feature_store.online.keys import STORED_ITEMS
from service.cli import COMMANDS, cli
from service.error_catalog import ERRORS
from service.error_pages import page_path
from service.settings import PREFIX, Settings
from tests.waiting import FIT_S, PATIENCE_S
from tidemark_docs.api_pages import descriptors
from tidemark_docs.benchmarks_page import page
from tidemark_docs.links import broken_links
from tidemark_docs.metrics_page import families
from tidemark_docs.models import sections
from training import evidence
from training.audit.checks import CHECKS
from training.config import TrainingConfig

ROOT: Final = Path(__file__).parents[2]
WIDTHS: Final = {"phone": 360, "desk": 1280}
PAGES: Final = (
    "index.html",
    "reference/settings.html",
    "reference/config.html",
    "reference/commands.html",
    "reference/api/scoring.html",
    "reference/metrics.html",
    "reference/errors/index.html",
    "reference/errors/quota-exceeded.html",
    "reference/redis.html",
    "reference/packed-formats.html",
    "benchmarks.html",
)
SEARCHES: Final = {
    "max_queue_s": "reference/settings.html",
    "CUSTOMER_UNKNOWN": "customer-unknown.html",
    "half_life_days": "reference/config.html",
}
"""What a reader looks for, and the page that must be among the results."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built as ``make docs`` does it."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-P", str(ROOT / "docs" / "build.py"), "--output", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=FIT_S, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (0, "")
    figures = json.loads(folder.with_name("site.json").read_text())
    assert figures["docs_build_seconds"] > 0
    return folder


def text_of(page: Path) -> str:
    """The text of a built page."""
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


# --- everything is documented ---------------------------------------------------------------------------------------


def option_names(command: click.Command) -> set[str]:
    nested = command.commands.values() if isinstance(command, click.Group) else ()
    own = {name for option in command.params if isinstance(option, click.Option) for name in option.opts}
    return own.union(*map(option_names, nested))


def keys_of(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields).union(*(keys_of(nested) for _, nested, _ in sections(model)))


def documented() -> Iterator[tuple[str, set[str]]]:
    """Each page of the reference, and the names that it must have."""
    yield "reference/settings.html", {PREFIX + name.upper() for name in Settings.model_fields}
    yield "reference/config.html", keys_of(TrainingConfig)
    context = click.Context(cli)
    commands = [command for name in COMMANDS if (command := cli.get_command(context, name)) is not None]
    yield "reference/commands.html", {f"tidemark {name}" for name in COMMANDS}.union(*map(option_names, commands))
    yield "reference/metrics.html", {name for family in families() for name in (family.name, *family.labels)}
    yield "reference/audit.html", set(CHECKS)
    yield "reference/errors/index.html", set(ERRORS)
    yield "reference/redis.html", {item.key for item in STORED_ITEMS}
    yield "reference/archive.html", COLUMNS.keys() | ALIAS_COLUMNS.keys()
    yield "reference/manifest.html", set(Manifest.model_fields)
    for file in descriptors():
        for service in file.service:
            names = {method.name for method in service.method} | {message.name for message in file.message_type}
            names |= {field.name for message in file.message_type for field in message.field}
            names |= {value.name for enum in file.enum_type for value in enum.value}
            yield f"reference/api/{service.name.removesuffix('Service').lower()}.html", names


def test_the_reference_has_every_name_that_the_code_has(site: Path) -> None:
    pages = dict(documented())
    missing = {path: {name for name in names if name not in text_of(site / path)} for path, names in pages.items()}
    assert {path: names for path, names in missing.items() if names} == {}
    assert len(pages) == 13


def test_each_reason_has_a_page_with_cause_fix_and_example(site: Path) -> None:
    for reason in ERRORS:
        text = text_of(site / page_path(reason))
        assert all(heading in text for heading in (reason, "Cause", "Fix", "Example"))


def test_every_check_of_the_audit_is_in_the_table_of_checks() -> None:
    sources = [*(ROOT / "training" / "audit").glob("*.py"), *(ROOT / "training" / "evaluation").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    used = {getattr(evidence, name) for name in re.findall(r"check=([A-Z_]+)", text)}
    assert used | set(re.findall(r'check="([^"]+)"', text)) == set(CHECKS)


# --- the built site -------------------------------------------------------------------------------------------------


def test_each_page_is_there_as_markdown_and_in_the_list_for_programs(site: Path) -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text())
    built = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert {path.removesuffix(".md") for path in listed} == built - {"genindex", "search"}
    assert all((site / path).is_file() for path in listed)
    assert "{toctree}" not in "".join((site / path).read_text() for path in listed if path.endswith(".md"))


def test_a_link_to_a_page_or_a_place_that_does_not_exist_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text('<h1 id="place">There</h1>')
    links = (
        '<a href="there.html#place"></a><a href="gone.html"></a><a href="there.html#gone"></a><a href="https://x"></a>'
    )
    (tmp_path / "index.html").write_text(links)
    assert list(broken_links(tmp_path)) == [
        "index.html: gone.html (there is no such file)",
        "index.html: there.html#gone (the page has no such place)",
    ]


def test_the_benchmarks_show_measured_figures_or_say_that_there_are_none() -> None:
    assert "No figures were measured" in page([])
    result = {"name": "unary_64", "value": 0.25, "goal": "<= 0.12", "ok": False, "note": "lean 41 µs"}
    measured = page([result])
    assert "No figures were measured" not in measured
    assert "| `unary_64` | 0.25 | <= 0.12 | **no** |" in measured
    assert "tests.benchmarks --only unary_64" in measured


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(site: Path, node_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser makes of the site, opened from its files."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the browser is built for Linux on x86_64")
    unpacked = tmp_path_factory.mktemp("browser")
    plan = {
        "site": site.as_uri(),
        "folder": str(unpacked),
        "widths": WIDTHS,
        "pages": PAGES,
        "searches": SEARCHES,
        "patience_ms": PATIENCE_S * 1000,
    }
    command = ["node", str(node_folder / "site.mjs")]
    ended = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, timeout=FIT_S, check=False)
    shutil.rmtree(unpacked)
    assert (ended.returncode, ended.stderr) == (0, "")
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_no_request_leaves_the_machine_and_the_console_stays_empty(seen: dict[str, Any], site: Path) -> None:
    assert seen["console"] == []
    assert seen["failed"] == []
    assert [url for url in seen["requests"] if not url.startswith((site.as_uri(), "data:", "blob:"))] == []


@pytest.mark.parametrize("name", WIDTHS)
def test_every_page_fits_the_screen(seen: dict[str, Any], name: str) -> None:
    opened = {path: figures for path, figures in seen["pages"].items() if path.startswith(f"{name} ")}
    assert len(opened) == len(PAGES)
    assert {path: figures["across"] for path, figures in opened.items() if figures["across"] > WIDTHS[name]} == {}
    assert all(figures["heading"] and figures["text"] > 100 for figures in opened.values())


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize(("word", "expected"), SEARCHES.items())
def test_search_works_without_a_server(seen: dict[str, Any], name: str, word: str, expected: str) -> None:
    assert any(expected in link for link in seen["found"][f"{name} {word}"])
