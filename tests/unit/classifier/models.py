"""Classifiers whose answers tell which item they are of, and a serving set of them."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from gristmill.classifier.v1 import item_pb2, result_pb2
from numpy.typing import NDArray

from services.classifier.answers import Answer
from services.classifier.classifier import Classifier
from services.classifier.servicer import ClassifierServicer
from services.classifier.traffic import Traffic
from services.inference import preprocessing
from services.inference.backend import Instance, TensorSpec
from services.inference.backends.fake import FakeBackend, Hook
from services.inference.batcher import Batcher
from services.inference.cache import Cache
from services.inference.items import TextItem
from services.inference.manifest import FILE_NAME, SCHEMA, Manifest
from services.inference.meter import Meter
from services.inference.serving import Serving
from services.runtime.admission import Admission, Limits
from services.runtime.catalog import Catalog, PolicyEntry, VersionEntry
from services.runtime.traffic import Split
from tests.harness import SOON_S
from tests.unit.inference.texts import write_tokenizer

NUMBERS = 4000
FIRST_TOKEN = 4
# A float on the wire has 24 bits of mantissa: every number below comes back exactly.
SCALE = 2**20
IDS = (TensorSpec("input_ids", "INT64", (-1, -1)), TensorSpec("attention_mask", "INT64", (-1, -1)))
VECTOR = (TensorSpec("features", "FP32", (-1, -1)),)


def text_of(number: int, words: int = 1) -> str:
    """A text of so many words whose answer is `number`."""
    return " ".join([f"n{number}"] + ["n0"] * (words - 1))


def text_item(number: int, words: int = 1) -> TextItem:
    """An item whose answer is `number`."""
    return TextItem(text_of(number, words))


def message(number: int, words: int = 1) -> item_pb2.Item:
    """The same on the wire."""
    return item_pb2.Item(text=item_pb2.Text(text=text_of(number, words)))


def number_in(result: result_pb2.ItemResult) -> int:
    """The number that an answer is of; the probabilities must have been asked for."""
    assert result.WhichOneof("outcome") == "classification", result
    return round(result.classification.probabilities[0] * SCALE) - FIRST_TOKEN


def number_of(answer: Answer) -> int:
    """The number that an answer is of, before it is on the wire."""
    assert answer.error is None, answer.error
    assert answer.probabilities is not None
    return round(float(answer.probabilities[0]) * SCALE) - FIRST_TOKEN


class _EchoInstance:
    def __init__(self, inner: Instance) -> None:
        self._inner = inner

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        first = self._inner.run(inputs)["echo"] / SCALE
        return {"probabilities": np.stack([first, 1 - first], axis=1)}


class EchoBackend(FakeBackend):
    """Its first probability is the first token or number of each row."""

    def __init__(self, inputs: tuple[TensorSpec, ...], before: Hook | None = None) -> None:
        super().__init__(before)
        self.inputs = inputs

    def instance(self) -> Instance:
        """One more executor."""
        return _EchoInstance(super().instance())


@dataclass
class World:
    """A registry's catalog and the serving set that follows it; `hook` sees every batch."""

    folder: Path
    hook: Hook | None = None
    instances: int = 1
    limits: Limits = field(default_factory=lambda: Limits(10**6, 2**40))
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    catalog: Catalog = field(default_factory=lambda: Catalog(1))
    runners: dict[tuple[str, int], Classifier] = field(default_factory=dict)
    backends: list[EchoBackend] = field(default_factory=list)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))
    cache: Cache | None = None
    shadows: bool = False
    made: dict[tuple[str, int], EchoBackend] = field(default_factory=dict)
    """What runs a version, where a test has made it."""

    def __post_init__(self) -> None:
        write_tokenizer(self.folder, [f"n{i}" for i in range(NUMBERS)], special=False)
        self.serving: Serving[Classifier] = Serving(
            "classification", self._fetch, self.start, shadows=self.shadows
        )
        self.traffic = Traffic(self.serving)
        self.servicer = ClassifierServicer(self.serving, self.traffic)

    async def _fetch(self, entry: VersionEntry) -> Path:
        if entry.model not in self.manifests:
            raise FileNotFoundError(entry.model)
        return self.write(entry.model)

    def write(self, model: str) -> Path:
        """The folder of a model."""
        folder = self.folder / model
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_bytes((self.folder / "tokenizer.json").read_bytes())
        (folder / FILE_NAME).write_text(yaml.safe_dump(self.manifests[model]))
        return folder

    async def start(self, entry: VersionEntry, manifest: Manifest, folder: Path) -> Classifier:
        """A classifier on the echo backend."""
        vector = manifest.input is not None and manifest.input.kind == "float_features"
        made = self.made.get((entry.model, entry.version))
        backend = made or EchoBackend(VECTOR if vector else IDS, self.hook)
        self.backends.append(backend)
        preprocessor = preprocessing.build(manifest, folder, backend.inputs)
        instances = [backend.instance() for _ in range(self.instances)]
        meter = Meter(entry.model, entry.version)
        batcher = Batcher(instances, manifest.batching, preprocessor.fill, meter)
        admission = Admission(self.limits, time.monotonic)
        runner = Classifier(
            manifest,
            backend,
            preprocessor,
            batcher,
            admission,
            self.threads,
            meter.statistics,
            self.cache.of(entry.model, entry.digest) if self.cache else None,
        )
        self.runners[(entry.model, entry.version)] = runner
        return runner

    def declare(self, model: str = "m", **fields: Any) -> None:
        """Say what a model is; a text model of two labels unless told otherwise."""
        least = {
            "schema": SCHEMA,
            "name": model,
            "task": "classification",
            "files": {"model": "m.onnx", "tokenizer": "tokenizer.json"},
            "input": {"kind": "text", "max_tokens": 64},
            "output": {"labels": ["first", "second"]},
        }
        self.manifests[model] = least | fields

    async def add(
        self, model: str = "m", version: int = 1, alias: str = "live", **fields: Any
    ) -> None:
        """A version that an alias points to, ready to answer."""
        if model not in self.manifests:
            self.declare(model, **fields)
        self.knows(model, version)
        self.catalog.set_alias(model, alias, version)
        await self.serving.update(self.catalog)
        await self.tried(model, version)

    def knows(self, model: str, version: int) -> None:
        """The registry has a version, which nothing points to."""
        self.catalog.set_model(model, "classification", archived=False)
        digest = f"{model}-{version}"
        self.catalog.set_version(VersionEntry(model, version, digest, ()), servable=True)

    async def policy(self, *splits: Split, shadow_version: int = 0, model: str = "m") -> None:
        """The traffic policy of a model changes; no shares: it is gone."""
        found = PolicyEntry(splits, "", shadow_version) if splits else None
        self.catalog.set_policy(model, found)
        await self.serving.update(self.catalog)

    async def tried(self, model: str, version: int) -> None:
        """Wait until a version is ready, or has failed."""
        async with asyncio.timeout(SOON_S):
            while not any(
                one.key == (model, version) and one.state != "loading"
                for one in self.serving.models()
            ):
                await asyncio.sleep(0.001)

    def runner(self, model: str = "m", version: int = 1) -> Classifier:
        """What runs a version."""
        return self.runners[(model, version)]

    async def close(self) -> None:
        """End everything."""
        await self.serving.close()
        self.threads.shutdown()
