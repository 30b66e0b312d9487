"""The commands on what points to versions: promote, split, history, watch."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from gristmill_client.cli.describing import change_row, described, event_line, moment_of, shares
from gristmill_client.cli.output import moment, print_json, print_table
from gristmill_client.cli.settings import Json, settings_of
from gristmill_client.client import Client
from gristmill_client.errors import FailedPrecondition
from gristmill_client.resources import TrafficPolicy

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]


def promote(
    context: typer.Context,
    model: Model,
    version: Annotated[int, typer.Argument(min=1, help="The version.")],
    alias: Annotated[str, typer.Option(help="The alias.")] = "live",
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC>=LIMIT",
            help="What a version needs from now on: 'accuracy>=0.9', 'p95_ms_batch_8<=40', "
            "'accuracy>=holder-0.01'. Again for each; replaces the gates there are.",
        ),
    ] = None,
    no_gates: Annotated[bool, typer.Option("--no-gates", help="Remove all gates.")] = False,
    json: Json = False,
) -> None:
    """Point an alias to a version. Says which gates do not hold."""
    gates = [] if no_gates else gate or None
    with settings_of(context).client() as client:
        try:
            moved = client.models.promote(model, version, alias, gates=gates)
        except FailedPrecondition as error:
            if error.reason != "GATE_UNMET" or not error.preconditions:
                raise
            typer.echo(f"gristmill: {model}:{alias} stays: gates do not hold", err=True)
            for unmet in error.preconditions:
                typer.echo(f"  {unmet}", err=True)
            raise typer.Exit(1) from error
    print_json(moved) if json else typer.echo(f"{model}:{moved.alias} is version {moved.version}")


def split(
    context: typer.Context,
    model: Model,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET=WEIGHT...", help="Versions or aliases: 1=90 candidate=10."),
    ] = None,
    sticky: Annotated[
        str, typer.Option(metavar="KEY", help="Calls with the same value of it stay together.")
    ] = "",
    shadow: Annotated[
        int | None, typer.Option(min=1, metavar="VERSION", help="Gets a copy of every call.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Back to the alias `live`.")] = False,
    json: Json = False,
) -> None:
    """Spread calls over versions. Without targets show how they are spread."""
    if clear and targets:
        raise typer.BadParameter("--clear takes no targets")
    if not targets and (sticky or shadow):
        raise typer.BadParameter("--sticky and --shadow go with targets such as 1=90 2=10")
    weights = dict(map(_weight, targets or ()))
    with settings_of(context).client() as client:
        if clear:
            client.models.delete_traffic_policy(model)
            print_json({"cleared": model}) if json else typer.echo(f"{model} follows `live` again")
            return
        if weights:
            policy = client.models.set_traffic_policy(
                model, weights, sticky_key=sticky, shadow=shadow
            )
        else:
            policy = client.models.traffic_policy(model)
    print_json(policy) if json else _print_policy(policy)


def history(
    context: typer.Context,
    model: Model,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What was served then: 2026-01-31T12:00:00Z, or 90m."),
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Only this alias.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Not before.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Not from then on.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most changes to print.")] = 50,
    json: Json = False,
) -> None:
    """Print what happened to a model, newest first, or what it served at a moment."""
    begin, end = (moment_of(text) if text else None for text in (since, until))
    with settings_of(context).client() as client:
        if at is not None:
            _print_at(client, model, moment_of(at), alias, json)
            return
        resource = f"aliases/{alias}" if alias else ""
        changes = client.models.history(model, start=begin, end=end, resource=resource, limit=limit)
    if json:
        print_json(changes)
        return
    columns = ("REVISION", "WHEN", "WHAT", "RESOURCE", "NOW", "BY")
    print_table(columns, [change_row(change) for change in changes])


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
                typer.echo(event_line(event))


def _weight(text: str) -> tuple[int | str, int]:
    target, _, weight = text.partition("=")
    if not target or not weight.isdecimal():
        raise typer.BadParameter(f"{text!r} is not TARGET=WEIGHT, such as 3=90 or candidate=10")
    return (int(target) if target.isdecimal() else target), int(weight)


def _print_policy(policy: TrafficPolicy) -> None:
    total = sum(split.weight for split in policy.splits)
    rows = [
        (split.version or split.alias, split.weight, f"{split.weight / total:.1%}")
        for split in policy.splits
    ]
    print_table(("TARGET", "WEIGHT", "SHARE"), rows)
    if policy.sticky_key:
        typer.echo(f"calls with the same {policy.sticky_key} stay together")
    if policy.shadow_version:
        typer.echo(f"version {policy.shadow_version} gets a copy of every call")


def _print_at(client: Client, model: str, when: datetime, alias: str | None, json: bool) -> None:
    """One alias, or what decided over calls that named none: the policy, and `live`."""
    found: dict[str, Any] = {alias or "live": client.models.at(model, when, alias=alias or "live")}
    if alias is None:
        found["traffic_policy"] = client.models.at(model, when)
    if json:
        print_json({"at": when, **found})
        return
    for name, resource in found.items():
        if isinstance(resource, TrafficPolicy):
            typer.echo(f"{moment(when)}  {model} split  {shares(resource)}")
        elif resource is not None:
            typer.echo(f"{moment(when)}  {model}:{name}  {described(resource)}")
    if not any(found.values()):
        missing = f"no alias {alias}" if alias else "no alias `live` and no split"
        typer.echo(f"{moment(when)}  {model} had {missing}")
