"""The `gristmill` command as a whole: its options, its commands, how it ends; knows no command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gristmill_client._config import DEFAULTS, client_version
from gristmill_client.cli import doctor, inference, pointing, registry, serve, working
from gristmill_client.cli.hints import in_one_line
from gristmill_client.cli.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve", context_settings=serve.CONTEXT)(serve.serve)
app.command("pull")(registry.pull)
app.command("push")(registry.push)
app.command("ls")(registry.ls)
app.command("show")(registry.show)
app.command("rm")(registry.rm)
app.command("run")(inference.run)
app.command("classify")(inference.classify)
app.command("promote")(pointing.promote)
app.command("split")(pointing.split)
app.command("history")(pointing.history)
app.command("archive")(registry.archive)
app.command("restore")(registry.restore)
app.command("evaluate")(working.evaluate)
app.command("convert")(working.convert)
app.command("profile")(working.profile)
app.command("import")(working.import_)
app.command("sources")(working.sources)
app.command("ops")(working.ops)
app.command("watch")(pointing.watch)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gristmill {client_version()}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    registry: Annotated[
        str,
        typer.Option(envvar="GRISTMILL_REGISTRY", help="Address of the registry."),
    ] = DEFAULTS["registry"],
    classifier: Annotated[
        str,
        typer.Option(envvar="GRISTMILL_CLASSIFIER", help="Address of the classifier."),
    ] = DEFAULTS["classifier"],
    generator: Annotated[
        str,
        typer.Option(envvar="GRISTMILL_GENERATOR", help="Address of the generator."),
    ] = DEFAULTS["generator"],
    token: Annotated[
        str | None,
        typer.Option(envvar="GRISTMILL_TOKEN", help="The token to present.", show_default=False),
    ] = None,
    ca_certificate: Annotated[
        Path | None,
        typer.Option(
            envvar="GRISTMILL_CA_CERTIFICATE", help="Use TLS and trust this PEM file.", exists=True
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, help="Seconds that a call may take [default: 30, generation 120]."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Serve, classify, generate and keep models with Gristmill."""
    context.obj = Settings(
        registry=registry,
        classifier=classifier,
        generator=generator,
        token=token,
        ca_certificate=ca_certificate,
        timeout=timeout,
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Exits with 0, 1 (failure), 2 (usage) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(list(arguments), prog_name="gristmill")
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        else:
            typer.echo(f"gristmill: {in_one_line(error)}", err=True)
        sys.exit(1)
    sys.exit(0)
