"""The command `serve`: becomes a service where one is installed; knows none of them."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from importlib.machinery import PathFinder
from typing import Annotated

import typer

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}


class Server(StrEnum):
    """What can be served."""

    classifier = "classifier"
    generator = "generator"
    registry = "registry"
    gateway = "gateway"
    all = "all"


MODULES = {Server.gateway: "gateway", Server.all: "services"}


def serve(
    context: typer.Context,
    server: Annotated[Server, typer.Argument(help="Which server.")],
) -> None:
    """Run a server here, or all with small models. More arguments are its own: see `-- --help`."""
    module = MODULES.get(server, f"services.{server.value}")
    if not is_runnable(module, [os.getcwd(), *sys.path]):
        typer.echo(
            f"gristmill: the {server.value} is not installed here: it ships in the image "
            f"gristmill-{server.value}, or run this within a checkout of Gristmill whose "
            f"environment has the extra `{server.value}`",
            err=True,
        )
        raise typer.Exit(1)
    arguments = [argument for argument in context.args if argument != "--"]
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # becomes it


def is_runnable(module: str, path: list[str]) -> bool:
    """Whether `python -m module` would find something, found out without importing anything."""
    name = ""
    for part in (*module.split("."), "__main__"):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return False
        path = list(spec.submodule_search_locations or ())
    return True
