"""The commands on models and versions: pull, push, ls, show, rm, archive, restore."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypedDict, cast, get_args

import typer

from gristmill_client._manifest import MANIFEST, infer
from gristmill_client._push import CHECK_TIMEOUT_S, OnCheck
from gristmill_client._tally import OnProgress
from gristmill_client.cli.describing import shares
from gristmill_client.cli.output import moment, print_json, print_table, size, transfer_bar
from gristmill_client.cli.settings import Json, Ref, ref_of, settings_of
from gristmill_client.errors import NotFound
from gristmill_client.resources import Alias, Task, Version

ModelRef = Annotated[
    str, typer.Argument(metavar="MODEL[:VERSION|:ALIAS]", help="The model, or one version of it.")
]
VersionRef = Annotated[
    str, typer.Argument(metavar="MODEL[:VERSION]", help="The model, or one version of it.")
]
TaskName = Annotated[
    str | None, typer.Option("--task", help=f"One of {', '.join(get_args(Task))}.")
]


def task_of(text: str | None) -> Task | None:
    if text is not None and text not in get_args(Task):
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(get_args(Task))}")
    return cast("Task | None", text)


def push(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Model folders.")],
    name: Annotated[
        str | None, typer.Option(help="Instead of the manifest's name, or the folder's.")
    ] = None,
    task: TaskName = None,
    alias: Annotated[str | None, typer.Option(help="Point this alias to the version.")] = None,
    repair: Annotated[
        str | None,
        typer.Option(metavar="MODEL:VERSION", help="Send again what the registry lost of it."),
    ] = None,
    json: Json = False,
) -> None:
    """Upload model folders, each as a version. What the registry has is not sent again."""
    broken = ref_of(repair) if repair is not None else None
    chosen = task_of(task)
    if (name is not None or broken is not None) and len(paths) > 1:
        raise typer.BadParameter("--name and --repair are for one folder")
    if broken is not None and (broken.version is None or name or task or alias):
        raise typer.BadParameter("--repair takes MODEL:VERSION and no other option")
    settings = settings_of(context)
    timeout = settings.timeout or CHECK_TIMEOUT_S
    with settings.client() as client:
        for path in paths:
            if broken is None:
                _say_inferred(path, name, chosen)
            with transfer_bar("push") as (on_progress, on_check):
                hear = Hear(timeout=timeout, on_progress=on_progress, on_check=on_check)
                if broken is not None and broken.version is not None:
                    version = client.models.repair(path, broken.model, broken.version, **hear)
                else:
                    version = client.models.push(path, name=name, task=chosen, alias=alias, **hear)
            if json:
                print_json(version)
            else:
                typer.echo(f"{_summary(version)}{f', alias {alias}' if alias else ''}")


class Hear(TypedDict):
    """What push and repair take alike."""

    timeout: float
    on_progress: OnProgress | None
    on_check: OnCheck | None


def pull(
    context: typer.Context,
    model: ModelRef,
    to: Annotated[Path | None, typer.Argument(help="The folder [default: ./MODEL].")] = None,
    json: Json = False,
) -> None:
    """Download the files of a version. Checks digests; goes on where it was cut."""
    ref = ref_of(model)
    folder = to or Path(ref.model)
    with settings_of(context).client() as client, transfer_bar("pull") as (on_progress, _):
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
    filter: Annotated[  # noqa: A002  # the option's name
        str, typer.Option(help="Such as 'state = READY AND labels.team = \"nlp\"'.")
    ] = "",
    order_by: Annotated[str, typer.Option(help="Such as 'create_time desc'.")] = "",
    json: Json = False,
) -> None:
    """List the models, or the versions of one."""
    with settings_of(context).client() as client:
        if model is not None:
            versions = client.models.versions(model, filter, order_by)
            aliases = client.models.aliases(model)
            print_json(versions) if json else _print_versions(versions, aliases)
            return
        models = client.models.list(filter, order_by)
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
        policy = None
        with suppress(NotFound):
            policy = client.models.traffic_policy(ref.model)
    if json:
        known = {"model": found, "versions": versions, "aliases": aliases}
        print_json({**known, "traffic_policy": policy})
        return
    typer.echo(f"{found.name} ({found.task}) {found.description}".rstrip())
    _print_versions(versions, aliases)
    for alias in aliases:
        for gate in alias.gates:
            typer.echo(f"{alias.alias} needs {gate}")
    if policy is not None:
        typer.echo(f"split {shares(policy)}")


def rm(
    context: typer.Context,
    model: VersionRef,
    force: Annotated[bool, typer.Option("--force", help="Although it has versions.")] = False,
    json: Json = False,
) -> None:
    """Delete a model or a version."""
    ref = _version_ref(model)
    with settings_of(context).client() as client:
        client.models.delete(ref.model, ref.version, force=force)
    print_json({"deleted": model}) if json else typer.echo(f"deleted {model}")


def archive(
    context: typer.Context,
    model: VersionRef,
    json: Json = False,
) -> None:
    """Put a model or a version away: it keeps everything and is served no more."""
    ref = _version_ref(model)
    with settings_of(context).client() as client:
        put_away = client.models.archive(ref.model, ref.version)
    print_json(put_away) if json else typer.echo(f"archived {model}")


def restore(context: typer.Context, model: VersionRef, json: Json = False) -> None:
    """Take an archived model or version back."""
    ref = _version_ref(model)
    with settings_of(context).client() as client:
        restored = client.models.restore(ref.model, ref.version)
    print_json(restored) if json else typer.echo(f"restored {model}")


def _version_ref(text: str) -> Ref:
    ref = ref_of(text)
    if ref.alias is not None:
        raise typer.BadParameter(f"{text!r} names an alias: give MODEL or MODEL:VERSION")
    return ref


def _say_inferred(path: Path, name: str | None, task: Task | None) -> None:
    """Without a model.yaml: what the folder is taken for."""
    if not (path / MANIFEST).exists():
        found = infer(path, name, task)
        rest = "" if found.task == "dataset" else "; the registry infers the rest"
        typer.echo(
            f"{path} has no {MANIFEST}: pushed as {found.name}, task {found.task}{rest}",
            err=True,
        )


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
