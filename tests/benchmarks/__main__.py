"""``make bench``: the figures of the README, each a ratio within this run, printed and written to build/bench.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from feature_store.bundles import bundle
from feature_store.embedded_redis import embedded_redis
from feature_store.errors import InputError
from tests.benchmarks.figures import FIGURES, GROUPS, Figure
from tests.benchmarks.setting import Bench, load_customers
from training.evidence import read_evidence


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--registry", type=click.Path(path_type=Path), default=Path("build/registry"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/bench.json"), show_default=True)
@click.option("--only", multiple=True, help="Measure only the figures of this name.")
def main(registry: Path, output: Path, only: tuple[str, ...]) -> None:
    """Measure on 127.0.0.1, bounded in time; everything that is needed is started here and ended here."""
    console = Console()
    results: list[Figure] = []
    with embedded_redis() as url:
        loaded = bundle_in(registry)
        load_customers(url, loaded)
        bench = Bench(registry, url, loaded, console)
        for name, goal, measure in FIGURES:
            if only and name not in only:
                continue
            console.print(f"measuring {name} …", end=" ", highlight=False)
            value, note = measure(bench)
            console.print(f"{value:.3f}", highlight=False)
            results.append(Figure(name, value, goal, note))
        for goals, measure_all in GROUPS:
            if only and not goals.keys() & set(only):
                continue
            console.print(f"measuring {', '.join(goals)} …", highlight=False)
            results += [Figure(name, value, goals[name], note) for name, (value, note) in measure_all(bench).items()]
    show(console, results)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"name": f.name, "value": f.value, "goal": f.goal, "ok": f.ok, "note": f.note} for f in results]
    output.write_text(json.dumps(rows, indent=2) + "\n")
    console.print(f"written to {output}", highlight=False)


def bundle_in(registry: Path) -> bundle.Bundle:
    """The current bundle; the sample's, fitted now, where there is none, or none with evidence beside it."""
    try:
        result = bundle.read(registry)
        read_evidence(registry / bundle.CURRENT)
    except (bundle.BundleError, InputError):
        command = [sys.executable, "-P", "-m", "training", "fit", "complete_journey", "--registry", str(registry)]
        subprocess.run(command, check=True)
        return bundle.read(registry)
    return result


def show(console: Console, results: list[Figure]) -> None:
    """Print the figures."""
    table = Table()
    for heading in ("figure", "value", "goal", "", "how"):
        table.add_column(heading)
    for figure in results:
        table.add_row(figure.name, f"{figure.value:.3f}", figure.goal, "ok" if figure.ok else "MISSED", figure.note)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
