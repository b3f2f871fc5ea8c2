"""Builds the documentation, with warnings as errors: ``make docs``."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

DOCS = Path(__file__).parent


def main() -> int:
    """Build the site from clean, write docs_build_seconds beside it, and return the exit code of the build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/docs"), help="folder of the built site")
    output = parser.parse_args().output
    shutil.rmtree(output, ignore_errors=True)
    doctrees = output.with_name(f"{output.name}.doctrees")
    shutil.rmtree(doctrees, ignore_errors=True)
    started = time.monotonic()
    command = [sys.executable, "-P", "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    code = subprocess.run([*command, "-b", "html", "-d", doctrees, DOCS, output], check=False).returncode
    seconds = time.monotonic() - started
    figures = {"docs_build_seconds": round(seconds, 1), "exit_code": code}
    output.with_name(f"{output.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"docs_build_seconds: {seconds:.1f}\nopen {output / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
