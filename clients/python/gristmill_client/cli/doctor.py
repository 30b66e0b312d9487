"""The command `doctor`: what is installed, what answers, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from typing import get_args

import typer

from gristmill_client._config import Service
from gristmill_client.cli.hints import hint_for
from gristmill_client.cli.output import print_json, print_table
from gristmill_client.cli.settings import Json, Settings, settings_of
from gristmill_client.client import Client
from gristmill_client.errors import GristmillError, Unavailable

_PACKAGES = ("gristmill-client", "gristmill-protos", "gristmill-services", "grpcio", "protobuf")
# A doctor does not wait as long as a patient.
_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """What a service answered; `advice` is empty where it is well."""

    service: str
    address: str
    status: str
    milliseconds: float | None
    advice: str


def doctor(context: typer.Context, json: Json = False) -> None:
    """Show versions and check every service. Exits with 1 if one is not serving."""
    settings = settings_of(context)
    versions = _versions()
    with settings.client() as client:
        findings = [_examine(client, settings, service) for service in get_args(Service)]
    if json:
        print_json({"versions": versions, "environment": _environment(), "services": findings})
    else:
        print_table(("PACKAGE", "VERSION"), list(versions.items()))
        typer.echo()
        for name, value in _environment().items():
            typer.echo(f"{name}={value}")
        print_table(("SERVICE", "ADDRESS", "STATUS", "MS", "ADVICE"), [_row(f) for f in findings])
    if any(finding.advice for finding in findings):
        raise typer.Exit(1)


def _examine(client: Client, settings: Settings, service: Service) -> Finding:
    address = str(getattr(settings, service))
    begin = time.perf_counter()
    try:
        status = client.health(service, timeout=settings.timeout or _TIMEOUT_S)
    except Unavailable as error:
        advice = f"start it with `gristmill serve {service}`, or name another with --{service}"
        return Finding(service, address, error.status, None, advice)
    except GristmillError as error:
        advice = hint_for(error) or error.message
        return Finding(service, address, error.status, None, advice)
    milliseconds = (time.perf_counter() - begin) * 1000
    advice = "" if status == "SERVING" else "it is starting or shutting down: see its log"
    return Finding(service, address, status, round(milliseconds, 1), advice)


def _row(finding: Finding) -> tuple[str, str, str, str, str]:
    took = "" if finding.milliseconds is None else f"{finding.milliseconds:.1f}"
    return finding.service, finding.address, finding.status, took, finding.advice


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _environment() -> dict[str, str]:
    """The variables that change what the client does; never a secret."""
    return {
        name: "(set)" if name == "GRISTMILL_TOKEN" else value
        for name, value in sorted(os.environ.items())
        if name.startswith("GRISTMILL_")
    }
