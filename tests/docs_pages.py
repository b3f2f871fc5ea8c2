"""Runs the code blocks of a documentation page, in their order, in one folder, as a reader would.

What a block is for follows from its language:

=========== ==========================================================================================================
``bash``    Commands. They must succeed. A block whose last command serves until it is stopped (``tidemark serve``,
            ``tidemark demo``, ``make run``, ``tidemark archive``) goes on in a terminal of its own, like one that ends
            in ``&``, and the next block runs when it is ready. Exported variables hold for later blocks.
``python``  A program. It must succeed.
``toml``    A file, whose name is the comment in its first line.
``text``    What the block before it prints: each line must be in its output, in this order. Numbers may differ, and
            ``…`` stands for anything.
=========== ==========================================================================================================

Ports of the page are replaced by free ones.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from tests.waiting import FIT_S, PATIENCE_S, until

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PORTS: Final = ("6379", "9464", "50051", "50052", "50061")
"""The ports that pages use."""
LANGUAGES: Final = ("bash", "python", "toml", "text")
FENCE: Final = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
KEEPS_RUNNING: Final = re.compile(r"^(tidemark (serve|demo|archive(?!.*--once))|make run)\b")
READY: Final = {"serve": re.compile("health is SERVING"), "demo": re.compile("until Ctrl-C")}
"""What a server prints, by command, when it is ready."""
NUMBER: Final = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}|\b[0-9a-f]{8}\b|(?:(?<!\w)[-+])?\d[\d,.:]*")
DECORATION: Final = re.compile(r"[\s─]+")

PRELUDE: Final = """
import sys
from tidemark.aio.base import AsyncClient
from tidemark.base import Client
for kind in (Client, AsyncClient):  # no call of a test fails because the machine is slow
    kind.__init__.__kwdefaults__["timeout_s"] = float(sys.argv[2])
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text and the number of its first line."""

    language: str
    text: str
    line: int

    @property
    def last_command(self) -> str:
        """The last line of a block of commands, joined with those that it continues."""
        lines = self.text.replace("\\\n", " ").strip().splitlines()
        return re.sub(r"\s+#.*", "", lines[-1]) if lines else ""

    @property
    def keeps_running(self) -> bool:
        """Whether its last command serves until it is stopped."""
        command = self.last_command
        return self.language == "bash" and bool(KEEPS_RUNNING.match(command)) and not command.rstrip().endswith("&")

    @property
    def server(self) -> str | None:
        """The command of the server that it starts, if it starts one: ``serve`` or ``demo``."""
        started = re.search(r"^(?:tidemark (serve|demo)|make run)\b", self.text, re.MULTILINE)
        return (started[1] or "demo") if started and self.language == "bash" else None


def pages() -> list[Path]:
    """The tutorials, one of which is a notebook, and the how-to guides."""
    folders = (DOCS / "tutorials", DOCS / "how-to")
    return sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".md", ".ipynb"))


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page; directives of MyST (``{name}``) are none. The cells of a notebook are one program."""
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code"]
        return [Block("python", "\n\n".join("".join(cell["source"]) for cell in cells), 1)]
    text = page.read_text()
    return [
        Block(match["info"].strip(), match["text"], text[: match.start()].count("\n") + 1)
        for match in FENCE.finditer(text)
        if not match["info"].startswith("{")
    ]


def commands_to_first_score() -> int:
    """Number of commands in the tutorial about one's own shop, up to and with the one that prints first scores."""
    steps = [step for step in blocks(DOCS / "tutorials" / "your-own-shop.md") if step.language == "bash"]
    commands = [line for step in steps for line in step.text.replace("\\\n", " ").splitlines() if line.strip()]
    return next(number for number, line in enumerate(commands, 1) if line.startswith("tidemark demo"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass
class Reader:
    """Somebody who follows a page: a folder, exported variables, and terminals in which servers run.

    Attributes:
        folder: Where the page's commands run.
        ports: The ports to use, by those of the page.
        environment: Variables that commands see.
    """

    folder: Path
    ports: Mapping[str, str]
    environment: dict[str, str]
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _printed: str = ""
    _number: int = 0

    def follow(self, page: Sequence[Block]) -> None:
        """Run all blocks of a page.

        Raises:
            AssertionError: A block failed, or printed something else than the page shows.
        """
        for block in page:
            text = re.sub("|".join(rf"\b{port}\b" for port in self.ports), lambda m: self.ports[m[0]], block.text)
            where = f"block in line {block.line}:\n{text}"
            if block.language == "toml":
                self._write(text)
            elif block.language == "text":
                assert_shown(text, self._printed, where)
            else:
                self._run(block, text, where)

    def stop(self) -> None:
        """Stop what still runs, the latest first: the processes of the terminals that this reader has opened."""
        for process in reversed(self._running):
            members = _members(process.pid)
            for member in members:
                member.terminate()
            _, alive = psutil.wait_procs(members, timeout=PATIENCE_S)
            for member in alive:
                member.kill()
            process.wait()

    def _write(self, text: str) -> None:
        name = re.match(r"# ([\w./-]+)\n", text)
        assert name, f"the first line names no file: {text}"
        path = self.folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _run(self, block: Block, text: str, where: str) -> None:
        self._number += 1
        script, output = self.folder / f".block{self._number}", self.folder / f".output{self._number}"
        variables = self.folder / f".variables{self._number}"
        if block.language == "python":
            script.write_text(text)
            command = [sys.executable, "-P", "-c", PRELUDE, str(script), str(PATIENCE_S)]
        else:
            ending = "" if block.keeps_running else f"\nenv -0 >{variables}\n"
            script.write_text(f"set -e\n{text}{ending}")
            command = ["bash", str(script)]
        with output.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._running.append(process)
        if not block.keeps_running:
            code = process.wait(FIT_S)
            assert code == 0, f"exit code {code} of the {where}\n{output.read_text()}"
            if variables.exists():
                pairs = (pair.partition("=") for pair in variables.read_text().split("\0") if pair)
                self.environment = {name: value for name, _, value in pairs}
        if block.server is not None and ".log" not in text:  # else the page itself waits for what the log says
            ready = READY[block.server]
            until(lambda: process.poll() or ready.search(output.read_text()), limit_s=FIT_S)
            assert ready.search(output.read_text()), f"{where}\n{output.read_text()}"
        self._printed = output.read_text()


def _members(group: int) -> list[psutil.Process]:
    """The processes of a group that have not ended: a terminal's commands, and what they left in the background."""
    members = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def normal(line: str) -> str:
    """A line without what may differ between two runs: its numbers, and how its columns are aligned."""
    return DECORATION.sub(" ", NUMBER.sub("0", line)).strip()


def assert_shown(shown: str, printed: str, where: str) -> None:
    """Every line that a page shows must have been printed, in this order."""
    lines = [normal(line) for line in printed.splitlines()]
    at = 0
    for line in shown.splitlines():
        wanted = normal(line)
        if wanted in ("", "…"):
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in wanted.split("…")))
        while at < len(lines) and not pattern.fullmatch(lines[at]):
            at += 1
        assert at < len(lines), f"not printed: {line!r}\n{where}\nprinted:\n{printed}"
        at += 1


@contextmanager
def reading(folder: Path, ports: Mapping[str, str], variables: Mapping[str, str]) -> Iterator[Reader]:
    """Somebody who follows pages in a folder; what they have started is stopped afterwards."""
    ours = ("TIDEMARK_", "REDIS_URL", "PYTEST_", "MAKE", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment |= {"PATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", **variables}
    reader = Reader(folder, ports, environment)
    try:
        yield reader
    finally:
        reader.stop()
