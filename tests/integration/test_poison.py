"""A full batch with one poisoned item, in every shape of call: it alone fails, the rest are right.

Wherever the poison acts, before the batch or in it, the others get the answers that they get alone.
"""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from google.rpc import code_pb2, error_details_pb2
from gristmill.classifier.v1 import item_pb2, options_pb2, result_pb2
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.pre_tokenizers import Split, WhitespaceSplit

from services.classifier.classifier import Classifier
from services.classifier.servicer import ClassifierServicer
from services.classifier.starter import Starter
from services.classifier.traffic import Traffic
from services.inference.manifest import FILE_NAME
from services.inference.serving import Serving
from services.runtime.catalog import Catalog, VersionEntry
from tests.harness import classifier, collect, details, pb, serve, soon
from tests.unit.classifier.models import FIRST_TOKEN, NUMBERS, World, message
from tests.unit.inference.fakes import Device
from tests.unit.registry_worker.folders import built, linear

BATCH = 32
"""The size of a full batch of every model here."""
SIZES = (3, BATCH)
"""Of the batches: small ones are scored in another way."""
INVALID = (code_pb2.INVALID_ARGUMENT, "INVALID_FIELD")
BROKEN = (code_pb2.INTERNAL, "BACKEND_FAILED")
Serve = Callable[[Path], Any]


@dataclass(frozen=True)
class Poison:
    """A model, items that are good for it, one that is not, and what comes of that one."""

    serving: Serve
    good: Callable[[int], item_pb2.Item]
    bad: item_pb2.Item
    ends: tuple[int, str]

    def ran_with(self, size: int) -> int:
        """How many ran together: what fails before the batch was not in it."""
        return size if self.ends == BROKEN else size - 1


# Models.


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[Serving[Classifier]]:
    """A model folder on ONNX Runtime, one instance."""

    async def fetch(entry: VersionEntry) -> Path:
        return folder

    catalog = Catalog(1)
    catalog.set_model("m", "classification", archived=False)
    catalog.set_version(VersionEntry("m", 1, "m", ()), servable=True)
    catalog.set_alias("m", "live", 1)
    with ThreadPoolExecutor(2) as threads:
        starter = Starter(threads, instances=1)
        serving: Serving[Classifier] = Serving("classification", fetch, starter.start)
        await serving.update(catalog)
        await soon(serving.synced.wait())
        assert [(one.state, one.reason) for one in serving.models()] == [("ready", "")]
        try:
            yield serving
        finally:
            await soon(serving.close())


def vectors(folder: Path) -> Any:
    """A linear model whose answer depends on all four numbers; large ones overflow it."""
    weights = [[3.0, -1.0, 10.0], [1.0, 2.0, -10.0], [0.5, 3.0, 1.0], [-2.0, 1.0, 0.0]]
    return real(linear(folder / "m", weights))


def sentiment(folder: Path) -> Any:
    """The real encoder, as `make models` built it, with no bound on its batches but the size."""
    here = folder / "m"
    here.mkdir()
    for path in built("sentiment").iterdir():
        (here / path.name).symlink_to(path)
    manifest = yaml.safe_load((here / FILE_NAME).read_text())
    (here / FILE_NAME).unlink()
    manifest["batching"] = {"max_batch_size": BATCH}
    (here / FILE_NAME).write_text(yaml.safe_dump(manifest))
    return real(here)


@asynccontextmanager
async def echo(folder: Path, tokenizer: Tokenizer | None = None) -> AsyncIterator[Any]:
    """A text model that repeats numbers, and cannot compute one of them."""
    device = Device()
    device.bad = {FIRST_TOKEN + 999.0}
    world = World(folder, device)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    await world.add()
    try:
        yield world.serving
    finally:
        await soon(world.close())


WORDS = {f"n{number}": number + FIRST_TOKEN for number in range(NUMBERS)}


def strict(folder: Path) -> Any:
    """The same with a tokenizer that raises on a word that it does not know."""
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return echo(folder, tokenizer)


def panicking(folder: Path) -> Any:
    """The same with a tokenizer whose pattern gives up on a long run: it panics, in Rust."""
    tokenizer = Tokenizer(WordLevel({**WORDS, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Steps([WhitespaceSplit(), Split(Regex(r"(a|a?)+$"), "removed")])
    return echo(folder, tokenizer)


# Items.


def features(*values: float) -> item_pb2.Item:
    """A vector."""
    return item_pb2.Item(float_features=item_pb2.FloatFeatures(values=values))


def vector(number: int) -> item_pb2.Item:
    """A good vector; others have other answers."""
    return features(*np.random.default_rng(number).normal(size=4))


def raw(**arrays: np.ndarray[Any, Any]) -> item_pb2.Item:
    """Tensors as they are."""
    types = {"float32": item_pb2.DATATYPE_FP32, "int64": item_pb2.DATATYPE_INT64}
    tensors = [
        item_pb2.Tensor(
            name=name, datatype=types[str(one.dtype)], shape=one.shape, data=one.tobytes()
        )
        for name, one in arrays.items()
    ]
    return item_pb2.Item(tensors=item_pb2.NamedTensors(tensors=tensors))


def numbers(*values: float) -> item_pb2.Item:
    """A raw tensor for the linear model."""
    return raw(features=np.array(values, np.float32))


def tokens(*ids: int) -> item_pb2.Item:
    """Raw token ids for the encoder."""
    given = np.array(ids, np.int64)
    return raw(input_ids=given, attention_mask=given * 0 + 1, token_type_ids=given * 0)


SENTENCE = (101, 2008, 2143, 2001, 6919, 1010, 1045, 2442, 2360, 1012, 102)
"""The tokens of the first sentence: poison among them is as long as all are."""


def sentence(number: int) -> item_pb2.Item:
    """A good sentence of as many tokens as any other."""
    what = ("film", "book", "song", "meal")[number % 4]
    how = ("wonderful", "terrible", "lovely", "awful")[number // 4 % 4]
    return item_pb2.Item(text=item_pb2.Text(text=f"That {what} was {how}, I must say."))


def text(words: str) -> item_pb2.Item:
    """Any text."""
    return item_pb2.Item(text=item_pb2.Text(text=words))


POISONS = {
    "not a number": Poison(vectors, vector, features(1, math.nan, 3, 4), INVALID),
    "infinite": Poison(vectors, vector, features(1, 2, math.inf, 4), INVALID),
    "too short": Poison(vectors, vector, features(1, 2, 3), INVALID),
    "another shape": Poison(vectors, vector, numbers(1, 2, 3, 4, 5), INVALID),
    "another rank": Poison(vectors, vector, raw(features=np.zeros((4, 1), np.float32)), INVALID),
    "another type": Poison(vectors, vector, raw(features=np.zeros(4, np.int64)), INVALID),
    "another name": Poison(vectors, vector, raw(nobody=np.zeros(4, np.float32)), INVALID),
    "no content": Poison(vectors, vector, item_pb2.Item(), INVALID),
    "a raw tensor that is not a number": Poison(
        vectors, vector, numbers(1, math.nan, 3, 4), BROKEN
    ),
    "numbers that overflow the model": Poison(vectors, vector, features(3e38, 3e38, 0, 0), BROKEN),
    "a token beyond the vocabulary": Poison(
        sentiment, sentence, tokens(*SENTENCE[:5], 10**6, *SENTENCE[6:]), BROKEN
    ),
    "a token below the vocabulary": Poison(
        sentiment, sentence, tokens(*SENTENCE[:5], -(10**6), *SENTENCE[6:]), BROKEN
    ),
    "a text that the tokenizer raises on": Poison(strict, message, text("n1 what"), INVALID),
    "a text that the tokenizer panics on": Poison(
        panicking, message, text("a" * 40 + "b"), INVALID
    ),
    "an item that the model raises on": Poison(echo, message, message(999), BROKEN),
}


# Calls of every shape.


async def classify(stub: Any, items: Sequence[item_pb2.Item]) -> list[Any]:
    """Unary."""
    request = pb.ClassifyRequest(items=items, options=OPTIONS)
    return list((await soon(stub.Classify(request))).results)


async def classify_stream(stub: Any, items: Sequence[item_pb2.Item]) -> list[Any]:
    """A stream of results, brought into the order of the items."""
    request = pb.ClassifyStreamRequest(items=items, options=OPTIONS)
    found = {one.index: one.result for one in await collect(stub.ClassifyStream(request))}
    return [found[index] for index in range(len(items))]


async def classify_bidi(stub: Any, items: Sequence[item_pb2.Item]) -> list[Any]:
    """The same items in one message of a bidi stream."""
    named = [pb.BidiItem(id=str(index), item=item) for index, item in enumerate(items)]
    request = pb.ClassifyBidiRequest(items=named, options=OPTIONS)
    messages = await collect(stub.ClassifyBidi(iter([request])))
    found = {one.id: one.result for message in messages for one in message.results}
    return [found[str(index)] for index in range(len(items))]


OPTIONS = options_pb2.ClassifyOptions(return_probabilities=True, top_k=10)
SHAPES = (classify, classify_stream, classify_bidi)


def answer(result: result_pb2.ItemResult) -> list[float]:
    """The probabilities of an item that was answered."""
    assert result.WhichOneof("outcome") == "classification", result
    found = list(result.classification.probabilities)
    best = result.classification.labels[0]
    assert best.score == max(found) == found[best.index]
    return found


@pytest.mark.parametrize("kind", POISONS)
async def test_one_poisoned_item_fails_alone(transport: str, kind: str, tmp_path: Path) -> None:
    poison = POISONS[kind]
    async with poison.serving(tmp_path) as serving:
        servicer = ClassifierServicer(serving, Traffic(serving))
        async with serve(classifier(servicer), transport) as served:
            good = [poison.good(number) for number in range(BATCH)]
            alone = [answer((await classify(served.stub, [item]))[0]) for item in good]
            assert len({tuple(one) for one in alone}) >= BATCH / 4, "all answers look the same"
            for shape, size in itertools.product(SHAPES, SIZES):
                for place in (0, size // 2, size - 1):
                    items = [*good[:place], poison.bad, *good[place + 1 : size]]
                    results = await shape(served.stub, items)
                    assert len(results) == size
                    _holds(poison, results, place, alone)
            (last,) = await classify(served.stub, [good[0]])
            assert answer(last) == pytest.approx(alone[0], abs=1e-5)


def _holds(poison: Poison, results: list[Any], place: int, alone: list[list[float]]) -> None:
    for index, result in enumerate(results):
        if index != place:
            assert answer(result) == pytest.approx(alone[index], abs=1e-5), index
            assert result.timings.batch_size == poison.ran_with(len(results))
    failed = results[place]
    assert failed.WhichOneof("outcome") == "error", failed
    (info,) = details(failed.error, error_details_pb2.ErrorInfo)
    assert (failed.error.code, info.reason) == poison.ends
    if poison.ends == BROKEN:
        assert "request" in failed.error.message.lower(), "it says where to look"
        assert not any(word in failed.error.message for word in ("Gather", "ValueError", "/"))


async def test_a_batch_of_poison_leaves_the_next_batch_alone(
    transport: str, tmp_path: Path
) -> None:
    """Every item of a batch fails, on its own; calls at the same time are answered."""
    poison = POISONS["a token beyond the vocabulary"]
    async with poison.serving(tmp_path) as serving:
        servicer = ClassifierServicer(serving, Traffic(serving))
        async with serve(classifier(servicer), transport) as served:
            items = [poison.bad] * BATCH
            calls = [classify(served.stub, given) for given in (items, [sentence(1)], items)]
            first, between, last = await soon(asyncio.gather(*calls))
            for result in (*first, *last):
                (info,) = details(result.error, error_details_pb2.ErrorInfo)
                assert (result.error.code, info.reason) == BROKEN
            assert len(answer(between[0])) == 2
