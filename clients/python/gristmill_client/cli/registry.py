"""The commands on the registry: pull, push, ls, show, rm, promote, watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gristmill_client.cli.output import moment, print_json, print_table, size, transfer_bar
from gristmill_client.cli.settings import Json, ref_of, settings_of
from gristmill_client.resources import Alias, Version, WatchEvent

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]
ModelRef = Annotated[
    str, typer.Argument(metavar="MODEL[:VERSION|:ALIAS]", help="The model, or one version of it.")
]


def push(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Folders, each with a model.yaml.")],
    name: Annotated[str | None, typer.Option(help="Instead of the manifest's name.")] = None,
    alias: Annotated[str | None, typer.Option(help="Point this alias to the version.")] = None,
    json: Json = False,
) -> None:
    """Upload model folders, each as a version. What the registry has is not sent again."""
    if name is not None and len(paths) > 1:
        raise typer.BadParameter("--name is for one folder", param_hint="--name")
    with settings_of(context).client() as client:
        for path in paths:
            with transfer_bar("push") as on_progress:
                version = client.models.push(path, name=name, alias=alias, on_progress=on_progress)
            if json:
                print_json(version)
            else:
                typer.echo(f"{_summary(version)}{f', alias {alias}' if alias else ''}")


def pull(
    context: typer.Context,
    model: ModelRef,
    to: Annotated[Path | None, typer.Argument(help="The folder [default: ./MODEL].")] = None,
    json: Json = False,
) -> None:
    """Download the files of a version. Checks digests; goes on where it was cut."""
    ref = ref_of(model)
    folder = to or Path(ref.model)
    with settings_of(context).client() as client, transfer_bar("pull") as on_progress:
        version = client.models.pull(
            ref.model, folder, version=ref.version, alias=ref.alias, on_progress=on_progress
        )
    if json:
        print_json({"folder": str(folder), "version": version})
    else:
        typer.echo(f"{_summary(version)} in {folder}")


def ls(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="List the versions of this model.")
    ] = None,
    json: Json = False,
) -> None:
    """List the models, or the versions of one."""
    with settings_of(context).client() as client:
        if model is not None:
            versions, aliases = client.models.versions(model), client.models.aliases(model)
            print_json(versions) if json else _print_versions(versions, aliases)
            return
        models = client.models.list()
    if json:
        print_json(models)
    else:
        rows = [
            (m.name, m.task or "", m.latest_version, moment(m.update_time), m.description)
            for m in models
        ]
        print_table(("MODEL", "TASK", "LATEST", "UPDATED", "DESCRIPTION"), rows)


def show(context: typer.Context, model: ModelRef, json: Json = False) -> None:
    """Show a model, or one version with its files."""
    ref = ref_of(model)
    with settings_of(context).client() as client:
        if ref.version is not None or ref.alias is not None:
            version = client.models.resolve(ref.model, version=ref.version, alias=ref.alias).version
            print_json(version) if json else _print_version(version)
            return
        found = client.models.get(ref.model)
        versions, aliases = client.models.versions(ref.model), client.models.aliases(ref.model)
    if json:
        print_json({"model": found, "versions": versions, "aliases": aliases})
        return
    typer.echo(f"{found.name} ({found.task}) {found.description}".rstrip())
    _print_versions(versions, aliases)
    for alias in aliases:
        for gate in alias.gates:
            typer.echo(f"{alias.alias} needs {gate}")


def rm(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL[:VERSION]", help="The model, or one version of it.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Although it has versions.")] = False,
    json: Json = False,
) -> None:
    """Delete a model or a version."""
    ref = ref_of(model)
    if ref.alias is not None:
        raise typer.BadParameter(f"{model!r} names an alias: rm takes MODEL or MODEL:VERSION")
    with settings_of(context).client() as client:
        client.models.delete(ref.model, ref.version, force=force)
    print_json({"deleted": model}) if json else typer.echo(f"deleted {model}")


def promote(
    context: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(min=1, help="The version.")],
    alias: Annotated[str, typer.Option(help="The alias.")] = "live",
    json: Json = False,
) -> None:
    """Point an alias to a version."""
    with settings_of(context).client() as client:
        moved = client.models.promote(model, version, alias)
    print_json(moved) if json else typer.echo(f"{model}:{moved.alias} is version {moved.version}")


def watch(
    context: typer.Context,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Only these models.")
    ] = None,
    after: Annotated[
        int | None, typer.Option(help="Begin after this revision, without a snapshot.")
    ] = None,
    json: Json = False,
) -> None:
    """Print changes as they happen. With --json one object in each line."""
    with (
        settings_of(context).client() as client,
        client.models.watch(after, names=models or ()) as events,
    ):
        for event in events:
            if json:
                print_json(event, in_one_line=True)
            elif event.kind != "bookmark":
                typer.echo(_event_line(event))


def _event_line(event: WatchEvent) -> str:
    parts = [str(event.revision), event.kind, event.name]
    match event.resource:
        case Alias(version=version):
            parts.append(f"-> {version}")
        case Version(state=state):
            parts.append(state)
    if event.actor:
        parts.append(f"by {event.actor}")
    return "  ".join(parts)


def _summary(version: Version) -> str:
    files = len(version.artifacts)
    return (
        f"{version.model}:{version.version} {version.state}, "
        f"{files} file{'s' * (files != 1)}, {size(version.size_bytes)}"
    )


def _print_versions(versions: list[Version], aliases: list[Alias]) -> None:
    named: dict[int, list[str]] = {}
    for alias in aliases:
        named.setdefault(alias.version, []).append(alias.alias)
    rows = [
        (
            v.version,
            v.state,
            ", ".join(named.get(v.version, ())),
            size(v.size_bytes),
            moment(v.create_time),
            v.digest[:12],
        )
        for v in versions
    ]
    print_table(("VERSION", "STATE", "ALIASES", "SIZE", "CREATED", "DIGEST"), rows)


def _print_version(version: Version) -> None:
    typer.echo(f"{_summary(version)} {version.description}".rstrip())
    for rejection in version.rejections:
        typer.echo(f"{rejection.path or 'version'}: {rejection.rule}: {rejection.message}")
    for metric, value in sorted(version.metrics.items()):
        typer.echo(f"{metric} = {value:g}")
    rows = [(a.path, size(a.size_bytes), a.sha256[:12]) for a in version.artifacts]
    print_table(("FILE", "SIZE", "SHA-256"), rows)
