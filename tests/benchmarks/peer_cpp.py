"""A peer: an empty unary call on gRPC's C++ server, where a compiler and gRPC's C++ library are at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from tests.benchmarks.setting import Server, server

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = Path(__file__).with_name("empty_cpp") / "server.cc"
PROTOS: Final = ROOT / "protos"
BUILD: Final = ROOT / "build" / "empty_cpp"
BINARY: Final = BUILD / "server"
TOOLS: Final = ("g++", "pkg-config", "protoc", "grpc_cpp_plugin")
LIBRARIES: Final = ("grpc++", "protobuf")
CONTRACT: Final = ("google/rpc/status.proto", "tidemark/v1/scoring.proto")
LIMIT_S: Final = 300.0


def cpp_server(say: Callable[[str], object] = print) -> AbstractContextManager[Server] | None:
    """The server, built where it has not been; None where that is not possible, having said why in a line."""
    problem = build()
    if problem:
        say(f"no C++ peer: {problem}")
        return None
    return server("tests.benchmarks.peer_cpp")


def build() -> str | None:
    """Build the server, if it is not there or older than what it is made from; what is in the way, in words."""
    made_from = [SOURCE, *(PROTOS / name for name in CONTRACT)]
    if BINARY.exists() and BINARY.stat().st_mtime > max(path.stat().st_mtime for path in made_from):
        return None
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not found (Debian: g++ pkg-config libgrpc++-dev protobuf-compiler-grpc)"
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        flags = _run("pkg-config", "--cflags", "--libs", *LIBRARIES).split()
        plugin = f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}"
        _run("protoc", f"-I{PROTOS}", f"--cpp_out={BUILD}", f"--grpc_out={BUILD}", plugin, *CONTRACT)
        sources = [SOURCE, *BUILD.rglob("*.cc")]
        _run("g++", "-O2", "-std=c++17", f"-I{BUILD}", *map(str, sources), *flags, "-o", str(BINARY))
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if line.strip()), f"exit code {error.returncode}")
        return f"{error.cmd[0]}: {reason}"
    except subprocess.TimeoutExpired as error:
        return f"{error.cmd[0]} took more than {LIMIT_S:g} s"
    return None


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout


if __name__ == "__main__":
    os.execv(BINARY, [str(BINARY)])
