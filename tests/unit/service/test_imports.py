"""What each side needs to be installed: the server no training code, the client grpcio and protobuf alone."""

from __future__ import annotations

import subprocess
import sys

IMPORTED = """
import sys
import {module}
print(" ".join(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""

CLIENT_ALONE = """
import sys

class NothingElseIsInstalled:
    def find_spec(self, name, path=None, target=None):
        installed = {"grpc", "google", "service", "tidemark", "typing_extensions", "cython_runtime"}
        if name.partition(".")[0] not in installed | sys.stdlib_module_names or name.startswith("google.rpc"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NothingElseIsInstalled())
from service.client import ScoringClient, ScoringFailedError
try:
    ScoringClient("127.0.0.1:1", timeout_s=0.2).score("7")
except ScoringFailedError as error:
    print(error.problem.code.name)
"""


def output_of(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_server_imports_no_training_code() -> None:
    found = output_of(IMPORTED.format(module="service.server"))
    assert {"onnxruntime", "redis", "grpc"} <= found
    assert not found & {"training", "sklearn", "skl2onnx", "onnx", "pandas", "duckdb", "scipy", "rich"}


def test_the_client_works_with_grpc_and_protobuf_alone() -> None:
    assert output_of(CLIENT_ALONE) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def test_training_imports_no_server() -> None:
    found = output_of(IMPORTED.format(module="training.__main__"))
    assert {"sklearn", "onnx", "duckdb"} <= found
    assert not found & {"service", "grpc", "tidemark", "uvloop"}
