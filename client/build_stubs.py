"""Build the Python stubs of the contract into ``tidemark/v1`` and ``tidemark/rpc``: run this file, or build the wheel.

The client needs grpcio and protobuf alone, yet a batch holds google.rpc.Status, whose Python module is part of
googleapis-common-protos. The stubs therefore include those two messages as ``tidemark.rpc``, which prefers that package
where it is installed, because the same proto file must not be registered twice in one process.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE: Final = Path(__file__).parent
PACKAGE: Final = HERE / "tidemark"

RPC: Final = '''"""Messages of google.rpc: from googleapis-common-protos where installed, else the copies built here."""

try:
    from google.rpc import error_details_pb2, status_pb2
except ImportError:
    from tidemark.rpc.built import error_details_pb2, status_pb2

__all__ = ["error_details_pb2", "status_pb2"]
'''


class StubsBuildHook(BuildHookInterface[Any]):
    """Builds the stubs before the wheel or source distribution is put together."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the stubs; the project's ``artifacts`` setting includes them."""
        build(PACKAGE)


def proto_folder() -> Path:
    """The folder of proto files: beside this project in the repository, inside it in a source distribution.

    Raises:
        SystemExit: there is none.
    """
    for folder in (HERE / "protos", HERE.parent / "protos"):
        if folder.is_dir():
            return folder
    sys.exit("error: no folder 'protos' in or beside the client project: build from a complete checkout")


def build(package: Path) -> None:
    """Compile every proto file into ``package/v1`` and ``package/rpc``, replacing what is there.

    Args:
        package: the folder of the import package ``tidemark``.

    Raises:
        SystemExit: protoc found a fault in the proto files.
    """
    protos = proto_folder()
    sources = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    includes = [f"-I{protos}", f"-I{files('grpc_tools') / '_proto'}"]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        code = protoc.main(
            ["protoc", *includes, f"--python_out={raw}", f"--pyi_out={raw}", f"--grpc_python_out={raw}", *sources]
        )
        if code:
            sys.exit(f"error: protoc ended with exit code {code}")
        for generated in ("v1", "rpc"):
            shutil.rmtree(package / generated, ignore_errors=True)
        shutil.copytree(raw / "tidemark" / "v1", package / "v1")
        shutil.copytree(raw / "google" / "rpc", package / "rpc" / "built", ignore=shutil.ignore_patterns("*_grpc.py"))
    for generated in ("v1", "rpc/built"):
        (package / generated / "__init__.py").write_text("")
    (package / "rpc" / "__init__.py").write_text(RPC)
    for path in [*package.glob("v1/*_pb2.py*"), *package.glob("rpc/built/*_pb2.py*")]:
        path.write_text(path.read_text().replace("from google.rpc import", "from tidemark.rpc import"))


if __name__ == "__main__":
    build(PACKAGE)
    print(f"stubs written to {PACKAGE / 'v1'} and {PACKAGE / 'rpc'}")
