"""The commands on long work: evaluate, convert, profile, import, sources, ops."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from gristmill_client.cli.output import moment, print_json, print_table, work_bar
from gristmill_client.cli.registry import ModelRef, TaskName, task_of
from gristmill_client.cli.settings import Json, Ref, Settings, ref_of, settings_of
from gristmill_client.operations import Operation
from gristmill_client.resources import Conversion, Profile, Version

Detach = Annotated[
    bool, typer.Option("--detach", help="Do not wait: print the operation, for `gristmill ops`.")
]


def evaluate(
    context: typer.Context,
    model: ModelRef,
    data: Annotated[
        str, typer.Option(metavar="DATASET[:VERSION|:ALIAS]", help="The labelled set.")
    ],
    prefix: Annotated[str, typer.Option(help="Put before the name of each metric.")] = "",
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Run a labelled set through a version [default: the newest READY] and keep its metrics."""
    ref, dataset = ref_of(model), ref_of(data)
    settings = settings_of(context)
    with settings.client() as client:
        work = client.models.evaluate(
            ref.model,
            _selector(ref),
            data=dataset.model,
            data_version=_selector(dataset),
            metric_prefix=prefix,
        )
        _finish(work, settings, json, detach=detach)


def convert(
    context: typer.Context,
    model: ModelRef,
    to: Annotated[str, typer.Option(help=f"One of {', '.join(get_args(Conversion))}.")],
    max_difference: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest difference of any probability.")
    ] = None,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Make a new version of a version [default: the newest READY]."""
    ref = ref_of(model)
    conversion = next((known for known in get_args(Conversion) if known == to), None)
    if conversion is None:
        raise typer.BadParameter(f"{to!r} is not one of {', '.join(get_args(Conversion))}")
    settings = settings_of(context)
    with settings.client() as client:
        work = client.models.convert(
            ref.model, _selector(ref), to=conversion, max_difference=max_difference
        )
        _finish(work, settings, json, detach=detach)


def profile(
    context: typer.Context,
    model: ModelRef,
    batch_sizes: Annotated[str, typer.Option(help="Such as 1,2,4,8.")] = "",
    lengths: Annotated[str, typer.Option(help="In tokens, such as 16,128.")] = "",
    stored: Annotated[
        bool, typer.Option("--stored", help="Measure nothing: show what was measured.")
    ] = False,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Measure the latency of a version [default: the newest READY] on the worker's host."""
    ref = ref_of(model)
    settings = settings_of(context)
    with settings.client() as client:
        if stored:
            curves = client.models.profiles(ref.model, _selector(ref))
            print_json(curves) if json else _print_profiles(curves)
            return
        work = client.models.profile(
            ref.model,
            _selector(ref),
            batch_sizes=_numbers(batch_sizes),
            lengths=_numbers(lengths),
        )
        _finish(work, settings, json, detach=detach)


def import_(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model.")],
    source: Annotated[
        str,
        typer.Option("--from", metavar="SOURCE:PATH[@REVISION]", help="What to fetch, and where."),
    ],
    task: TaskName = None,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Fetch a model from a source of the registry into a new version."""
    name, colon, rest = source.partition(":")
    path, at, revision = rest.rpartition("@")
    if not at:
        path, revision = rest, ""
    if not (name and colon and path):
        raise typer.BadParameter(f"{source!r} is not SOURCE:PATH[@REVISION]", param_hint="--from")
    settings = settings_of(context)
    with settings.client() as client:
        work = client.models.import_(model, name, path, revision, task=task_of(task))
        _finish(work, settings, json, detach=detach)


def sources(context: typer.Context, json: Json = False) -> None:
    """List where the registry may import from."""
    with settings_of(context).client() as client:
        found = client.models.sources()
    if json:
        print_json(found)
    else:
        print_table(("SOURCE", "KIND"), [(each.source, each.kind) for each in found])


def ops(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One operation [default: list all].")
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Ask that it end.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for it and print its result.")] = False,
    running: Annotated[bool, typer.Option("--running", help="List only what goes on.")] = False,
    json: Json = False,
) -> None:
    """List long work, or show, wait for or cancel one piece of it."""
    if name is None and (cancel or wait):
        raise typer.BadParameter("--cancel and --wait need the NAME of an operation")
    settings = settings_of(context)
    with settings.client() as client:
        if name is None:
            found = client.models.list_operations(done=False if running else None)
            print_json(found) if json else _print_operations(found)
            return
        work = client.models.operation(name)
        if cancel:
            work.cancel()
            work = work.refresh()
        _finish(work, settings, json, detach=not wait)


def _finish(work: Operation[Any], settings: Settings, json: bool, *, detach: bool) -> None:
    """Waits as long as the options allow and prints what came of it; an error is raised."""
    if detach:
        print_json(work) if json else _print_operations([work])
        return
    with work_bar(work.kind) as on_progress:
        result = work.wait(settings.timeout, on_progress)
    if json:
        print_json(result)
    elif isinstance(result, Profile):
        _print_profiles([result])
    elif isinstance(result, Version):
        typer.echo(f"{result.model}:{result.version} {result.state}")
        for metric, value in sorted(result.metrics.items()):
            typer.echo(f"{metric} = {value:g}")


def _selector(ref: Ref) -> int | str | None:
    return ref.version if ref.version is not None else ref.alias


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",") if number.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not whole numbers with commas between") from error


def _print_operations(found: list[Operation[Any]]) -> None:
    rows = [
        (
            each.name.removeprefix("operations/"),
            each.kind,
            each.subject.removeprefix("models/").replace("/versions/", ":"),
            _standing(each),
            moment(each.create_time),
            each.error.message if each.error else each.message,
        )
        for each in found
    ]
    print_table(("OPERATION", "KIND", "SUBJECT", "STATE", "BEGUN", "MESSAGE"), rows)


def _standing(work: Operation[Any]) -> str:
    if work.done:
        return "failed" if work.error else "done"
    return "ending" if work.cancel_requested else f"{work.progress:.0%}"


def _print_profiles(profiles: list[Profile]) -> None:
    for curve in profiles:
        typer.echo(f"{curve.model}:{curve.version} on {curve.fingerprint}")
        rows = [
            (p.batch_size, p.length, f"{p.p50_us / 1000:.2f}", f"{p.p95_us / 1000:.2f}")
            for p in curve.points
        ]
        print_table(("BATCH", "LENGTH", "P50 MS", "P95 MS"), rows)
