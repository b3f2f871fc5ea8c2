"""The console command ``tidemark``: every command of the server distribution under one name.

The commands belong to different extras (``tidemark[service]``, ``[training]``, …), and some of them import slowly. They
are therefore named here as text and imported only when they run: ``tidemark --help`` works with any extras and is fast.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import click

from feature_store.cli import run_cli

OURS: Final = ("feature_store", "service", "tidemark", "training")


@dataclass(frozen=True)
class Command:
    """Where a command is (``module:attribute``), the extras that it needs, and what the list of commands says of it."""

    target: str
    extras: str
    help: str


SECTIONS: Final[dict[str, dict[str, Command]]] = {
    "Train a model": {
        "init": Command("training.__main__:init", "training", "Propose a config for a shop's tables."),
        "audit": Command("training.__main__:audit", "training", "Check the data of a config for problems."),
        "fit": Command("training.__main__:fit", "training", "Fit the models of a config and publish them as a bundle."),
        "report": Command("training.__main__:report", "training", "Write the report of a bundle again."),
        "compare": Command("training.__main__:compare", "training", "Compare two bundles on the same test data."),
    },
    "Manage the feature store": {
        "load": Command("feature_store.__main__:load", "training", "Write the states of all customers into Redis."),
        "verify": Command("feature_store.__main__:verify", "training", "Check that Redis agrees with the source."),
        "archive": Command("feature_store.__main__:archive", "training", "Move live events from Redis into files."),
        "erase": Command("feature_store.__main__:erase", "training", "Prove that a deleted customer is gone."),
        "prune": Command("feature_store.__main__:prune", "training", "Remove states of bundles that are not in use."),
        "cost": Command(
            "feature_store.__main__:cost", "training,demo", "Measure memory and time of a config's features."
        ),
        "customer-ids": Command("service.customer_ids:customer_ids", "service", "List the customers in Redis."),
    },
    "Serve scores": {
        "serve": Command("service.cli:serve", "service", "Serve scores over gRPC."),
        "tokens": Command("service.tokens:cli", "service", "Create tokens for callers."),
        "score": Command("service.score:score", "service", "Ask a running server for scores."),
        "healthcheck": Command("service.healthcheck:healthcheck", "service", "Check whether the local server serves."),
    },
    "Try it out": {
        "demo": Command("service.demo:demo", "service,training,demo", "Train, load, serve and show first answers."),
        "replay": Command(
            "service.replay:replay", "service,training", "Send a source's events to a server as live events."
        ),
        "load-test": Command("service.load_test:load_test", "service,load", "Measure how many calls a server answers."),
    },
}
COMMANDS: Final = {name: command for section in SECTIONS.values() for name, command in section.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """All names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """The command of a name, imported; None if there is none of that name.

        Raises:
            ClickException: a package is missing that one of the extras would install.
        """
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise _missing(cmd_name, error) from error
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command to run; for a name that does not exist the error suggests similar names."""
        close = difflib.get_close_matches(args[0], COMMANDS, n=3)
        if args[0] not in COMMANDS and close:
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean {' or '.join(close)}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """List the commands by section, without importing them."""
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, command.help) for name, command in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a package that it imports late may be missing, too."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing(ctx.invoked_subcommand or "", error) from error


def _missing(name: str, error: ModuleNotFoundError) -> Exception:
    """The error to show for a package that is not installed; one of our own modules is a fault and stays as it is."""
    package = (error.name or "").partition(".")[0]
    if package in OURS or name not in COMMANDS:
        return error
    extras = COMMANDS[name].extras
    return click.ClickException(
        f"'tidemark {name}' needs the package {package}, which is not installed: pip install 'tidemark[{extras}]'"
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidemark")
def cli() -> None:
    """Churn, purchase propensity and per-customer thresholds: train, load, serve.

    Each command has its own --help.
    """


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: Sequence[str]) -> None:
    """Serve scores over gRPC. Settings are options or environment variables (TIDEMARK_…)."""
    if find_spec("onnxruntime") is None:  # it is imported only when a graph is loaded, which is late to miss it
        raise ModuleNotFoundError(name="onnxruntime")
    from service.__main__ import main as run_server  # noqa: PLC0415  # only this command needs it

    run_server(list(options))


def main() -> None:
    """Run the console command."""
    run_cli(cli, "tidemark")


if __name__ == "__main__":
    main()
