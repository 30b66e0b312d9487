"""The commands that use models: run and classify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gristmill_client.cli.output import print_json, print_table
from gristmill_client.cli.settings import Json, ref_of, settings_of
from gristmill_client.client import Client
from gristmill_client.completion import GenerateOptions, Message
from gristmill_client.prediction import ClassifyOptions, Item, Prediction

# The most items that the contract takes in one Classify.
_MAX_ITEMS = 1024

ModelRef = Annotated[str, typer.Argument(metavar="MODEL[:VERSION|:ALIAS]", help="The model.")]


def run(
    context: typer.Context,
    model: ModelRef,
    text: Annotated[
        str | None, typer.Argument(help="What to say [default: all of standard input].")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The operator's message before it.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Give the model the text as it is: no chat template.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Repeatable draws.")] = None,
    json: Json = False,
) -> None:
    """Generate text, printed as it comes. With --json the whole answer at the end."""
    if raw and system:
        raise typer.BadParameter("--system belongs to a chat, which --raw is not")
    ref = ref_of(model)
    said = _standard_input() if text in (None, "-") else str(text)
    options = GenerateOptions(
        version=ref.version,
        alias=ref.alias,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    prompt = said if raw else None
    messages: list[Message] | None = None
    if not raw:
        opening: list[Message] = [{"role": "system", "content": system}] if system else []
        messages = [*opening, {"role": "user", "content": said}]
    with settings_of(context).client() as client:
        if json:
            print_json(client.generate(prompt, messages=messages, model=ref.model, **options))
            return
        with client.stream(prompt, messages=messages, model=ref.model, **options) as deltas:
            for delta in deltas:
                sys.stdout.write(delta)
                sys.stdout.flush()
    typer.echo()


def classify(
    context: typer.Context,
    model: ModelRef,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts [default: the lines of standard input].")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many labels of each.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="With --json: of every label.")
    ] = False,
    features: Annotated[
        bool, typer.Option("--features", help="A text is numbers: 5.1,3.5,1.4,0.2")
    ] = False,
    images: Annotated[
        bool, typer.Option("--images", help="A text is the path of an image: cat.png")
    ] = False,
    json: Json = False,
) -> None:
    """Classify texts, numbers or images. Exits with 1 if one of them failed."""
    if features and images:
        raise typer.BadParameter("--features and --images exclude each other")
    ref = ref_of(model)
    lines = texts or _standard_input().splitlines()
    items: list[Item] = [_numbers(line) for line in lines] if features else [*lines]
    options = ClassifyOptions(
        version=ref.version, alias=ref.alias, top_k=top_k, probabilities=probabilities
    )
    with settings_of(context).client() as client:
        if images:
            # One in a message, and read when its turn comes: a folder of them fits nowhere.
            found = client.classify_many(map(_image, lines), ref.model, batch=1, **options)
            predictions = [prediction for _, prediction in sorted(found, key=lambda one: one[0])]
        else:
            predictions = _classify_all(client, items, ref.model, options)
    if json:
        print_json(predictions)
    else:
        print_table(("LABEL", "SCORE", "TEXT"), _rows(lines, predictions))
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(1)


def _classify_all(
    client: Client, items: list[Item], model: str, options: ClassifyOptions
) -> list[Prediction]:
    found = []
    for begin in range(0, len(items), _MAX_ITEMS):
        found += client.classify(items[begin : begin + _MAX_ITEMS], model, **options)
    return found


def _numbers(line: str) -> list[float]:
    try:
        return [float(number) for number in line.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{line!r} is not numbers with commas between") from error


def _image(line: str) -> bytes:
    try:
        return Path(line).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{line}: {error.strerror}") from error


def _rows(lines: list[str], predictions: list[Prediction]) -> list[tuple[str, str, str]]:
    rows = []
    for line, prediction in zip(lines, predictions, strict=True):
        if prediction.error is not None:
            rows.append(("error", "", f"{line} ({prediction.error})"))
        rows += [(entry.label, f"{entry.score:.4f}", line) for entry in prediction.labels]
    return rows


def _standard_input() -> str:
    if sys.stdin.isatty():
        typer.echo("reading standard input; end it with Ctrl-D", err=True)
    return sys.stdin.read().removesuffix("\n")
