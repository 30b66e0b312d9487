"""What the options before the command say, and the client they make; knows no command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer

from gristmill_client._config import GENERATE_TIMEOUT_S, TIMEOUT_S
from gristmill_client.client import Client

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The global options of one run."""

    registry: str
    classifier: str
    generator: str
    token: str | None
    ca_certificate: Path | None
    timeout: float | None

    def client(self) -> Client:
        return Client(
            registry=self.registry,
            classifier=self.classifier,
            generator=self.generator,
            token=self.token,
            ca_certificate=self.ca_certificate,
            timeout=self.timeout or TIMEOUT_S,
            generate_timeout=self.timeout or GENERATE_TIMEOUT_S,
        )


def settings_of(context: typer.Context) -> Settings:
    return cast(Settings, context.obj)


@dataclass(frozen=True)
class Ref:
    """MODEL, MODEL:VERSION or MODEL:ALIAS."""

    model: str
    version: int | None = None
    alias: str | None = None


def ref_of(text: str) -> Ref:
    """Versions are decimal, so an alias is everything else; full names are taken too."""
    short = re.sub(r"^models/([^/:]+)(?:/(?:versions|aliases)/([^/:]+))?$", _short, text)
    model, colon, selector = short.partition(":")
    if not model or (colon and not selector):
        raise typer.BadParameter(f"{text!r} is not MODEL, MODEL:VERSION or MODEL:ALIAS")
    if selector.isdecimal():
        return Ref(model, version=int(selector))
    return Ref(model, alias=selector or None)


def _short(found: re.Match[str]) -> str:
    return f"{found[1]}:{found[2]}" if found[2] else found[1]
