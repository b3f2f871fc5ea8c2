"""Build the Python stubs of the contract into ``build/stubs``: run this file, or build the wheel.

The client needs grpcio and protobuf alone, yet a batch holds google.rpc.Status, whose Python module lives in a package
of its own. So the stubs bring those two messages along as ``tidemark.rpc``, which prefers that package where it is
installed: the same file must not be registered twice in one process.
"""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = Path(__file__).parent
STUBS = PROTOS.parent / "build" / "stubs"

RPC = '''"""google.rpc messages: of googleapis-common-protos where it is installed, else the copies built along."""

try:
    from google.rpc import error_details_pb2, status_pb2
except ImportError:
    from tidemark.rpc.built import error_details_pb2, status_pb2

__all__ = ["error_details_pb2", "status_pb2"]
'''


class StubsBuildHook(BuildHookInterface[Any]):
    """Puts freshly built stubs into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the stubs and include them as the package ``tidemark``."""
        build(STUBS)
        build_data["force_include"][str(STUBS / "tidemark")] = "tidemark"


def build(target: Path) -> None:
    """Compile every proto file below this folder into the package ``target/tidemark``."""
    shutil.rmtree(target, ignore_errors=True)
    raw = target / "raw"
    raw.mkdir(parents=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    code = protoc.main(
        ["protoc", *includes, f"--python_out={raw}", f"--pyi_out={raw}", f"--grpc_python_out={raw}", *sources]
    )
    if code:
        sys.exit(f"error: protoc ended with {code}")

    package = target / "tidemark"
    shutil.copytree(raw / "tidemark", package)
    shutil.copytree(raw / "google" / "rpc", package / "rpc" / "built", ignore=shutil.ignore_patterns("*_grpc.py"))
    shutil.rmtree(raw)
    (package / "rpc" / "__init__.py").write_text(RPC)
    (package / "py.typed").touch()
    for path in [*package.rglob("*_pb2.py"), *package.rglob("*_pb2.pyi")]:
        path.write_text(path.read_text().replace("from google.rpc import", "from tidemark.rpc import"))


if __name__ == "__main__":
    build(STUBS)
    print(f"stubs written to {STUBS}")
