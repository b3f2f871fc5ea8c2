"""``tidemark serve``, or ``python -m service``: serve scores over gRPC."""

from __future__ import annotations

import os
import sys

# grpc reads this when it is imported, and any import below may import it. gRPC's C core writes its own log in its own
# format; errors that matter are reported by grpc itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from feature_store.bundles.bundle import BundleError
from feature_store.config import first_problem
from feature_store.errors import InputError, end_with
from service.app.supervisor import supervise
from service.settings import Settings, outdated_setting
from service.telemetry.logs import start_log


def main(arguments: list[str] | None = None) -> None:
    """Read settings, serve, and end bad input in one line and exit code 2.

    Args:
        arguments: the options; by default those of this process.
    """
    if problem := outdated_setting(sys.argv[1:] if arguments is None else arguments, os.environ):
        end_with(problem, 2)
    try:
        settings = CliApp.run(Settings, cli_args=arguments, cli_exit_on_error=False)
    except ValidationError as error:
        end_with(_hint(first_problem(error)), 2)
    except SettingsError as error:
        end_with(str(error), 2)
    from service.app.server import serve_alone, work  # noqa: PLC0415  # slow to import, and --help does not need it

    start_log(settings)
    try:
        if settings.workers > 1 or settings.supervised:
            supervise(settings, work)
        else:
            serve_alone(settings)
    except (BundleError, InputError, OSError) as error:
        end_with(str(error), 2)


def _hint(problem: str) -> str:
    name, _, what = problem.partition(": ")
    option = "--" + name.replace("_", "-")
    return f"{option} (or TIDEMARK_{name.upper()}): {what}"


if __name__ == "__main__":
    main()
