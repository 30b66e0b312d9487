"""Runs a labelled set through a model in batches, as serving would; knows no wire and no store."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.inference import loading
from services.inference.batcher import Batcher
from services.inference.examples import Example, Examples, Labels
from services.inference.items import Encoded
from services.inference.loading import Loaded
from services.inference.manifest import Manifest
from services.inference.meter import Meter
from services.inference.outcomes import Outcome, Scored
from services.inference.scheduler import WINDOW_BATCHES
from services.inference.scoring import probabilities
from services.runtime.admission import Admission, Cost, Limits
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    BackendFailed,
    FailedPrecondition,
    GristmillError,
    InvalidRequest,
)
from services.work.pace import Paced, Progress
from services.work.scores import Scores

MAX_MESSAGE_ITEMS = 256
# Nobody waits for one message of an evaluation; whoever waits for all of it can cancel it.
MESSAGE_S = 24 * 3600.0

Encoding = Encoded | GristmillError


async def evaluate(folder: Path, data: Path, prefix: str, progress: Progress) -> dict[str, float]:
    """The metrics of a model folder on a labelled set, each name behind `prefix`.

    `examples` counts the lines with an example, `errors` those that the model refused or failed
    on; accuracy, f1_macro, precision_macro, recall_macro, log_loss and ece are over the others,
    items_per_s is their number by the time from the first to the last. Raises InvalidRequest that
    names the line where the set is malformed or has a label that the model lacks, and
    FailedPrecondition where no example could be answered.
    """
    manifest = Manifest.read(folder)
    loaded = await asyncio.to_thread(loading.load, manifest, folder)
    batcher = Batcher(
        loaded.instances, manifest.batching, loaded.preprocessor.fill, Meter(manifest.name, 0)
    )
    try:
        with Examples(data) as examples:
            run = _Run(examples, loaded, manifest, batcher, Paced(progress))
            await run.all()
    finally:
        await batcher.close()
        loaded.backend.close()
    return {f"{prefix}{name}": value for name, value in run.figures().items()}


class _Run:
    """One pass over a set: a window of messages in the batcher, each read when there is room."""

    def __init__(
        self,
        examples: Examples,
        loaded: Loaded,
        manifest: Manifest,
        batcher: Batcher,
        progress: Paced,
    ) -> None:
        self._examples = examples
        self._preprocessor = loaded.preprocessor
        self._labels = Labels(manifest.output.labels, manifest.output.multi_label)
        self._batcher = batcher
        self._progress = progress
        # As many items as the scheduler looks through for a length that fits, and then some.
        self._size = min(manifest.batching.max_batch_size, MAX_MESSAGE_ITEMS)
        self._window = WINDOW_BATCHES + 2 * len(loaded.instances)
        self._admission = Admission(Limits(self._window * self._size, 2**62), time.monotonic)
        self._turn = asyncio.Lock()
        self._scores: Scores | None = None
        self._width = 0
        self._read = 0
        self._errors = 0
        self._first_error = ""
        self._seconds = 0.0

    async def all(self) -> None:
        """Everything; the first failure that is not an item's own ends it."""
        started = time.perf_counter()
        lanes = [asyncio.ensure_future(self._lane()) for _ in range(self._window)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
        self._seconds = time.perf_counter() - started

    def figures(self) -> dict[str, float]:
        """The metrics of what was run."""
        if not self._read:
            raise InvalidRequest("the labelled set has no example in it")
        if self._scores is None:
            raise FailedPrecondition(
                f"none of {self._read} examples could be answered; the first: {self._first_error}"
            )
        figures = {"examples": float(self._read), "errors": float(self._errors)}
        figures |= self._scores.figures()
        figures["items_per_s"] = self._scores.count / max(self._seconds, 1e-9)
        return figures

    async def _lane(self) -> None:
        while True:
            async with self._turn:
                examples, encoded = await asyncio.to_thread(self._next)
            if not examples:
                return
            self._read += len(examples)
            self._progress(self._examples.fraction, f"{self._read} examples")
            good = [item for item in encoded if isinstance(item, Encoded)]
            cost = Cost(len(good), sum(item.nbytes for item in good))
            deadline = Deadline.after(MESSAGE_S)
            with self._admission.admit("evaluation", deadline, cost) as permit:
                outcomes = iter(await self._batcher.submit(good, permit))
            self._count(
                examples, [next(outcomes) if isinstance(e, Encoded) else e for e in encoded]
            )

    def _next(self) -> tuple[list[Example], Sequence[Encoding]]:
        """The next message; on a thread, one lane at a time."""
        examples = self._examples.chunk(self._size)
        return examples, self._preprocessor.encode([example.item for example in examples])

    def _count(self, examples: Sequence[Example], outcomes: Sequence[Outcome]) -> None:
        rows: list[NDArray[np.float64]] = []
        truths: list[NDArray[np.bool_]] = []
        for example, outcome in zip(examples, outcomes, strict=True):
            try:
                row = self._row(outcome)
            except GristmillError as error:
                self._errors += 1
                self._first_error = self._first_error or str(error)
                continue
            truth = np.zeros(row.size, dtype=np.bool_)
            truth[self._labels.indices(example, row.size)] = True
            rows.append(row)
            truths.append(truth)
        if rows:
            if self._scores is None:
                self._scores = Scores(rows[0].size, multi_label=self._labels.multi_label)
            self._scores.add(np.stack(rows), np.stack(truths))

    def _row(self, outcome: Outcome) -> NDArray[np.float64]:
        if not isinstance(outcome, Scored):
            raise outcome
        row = probabilities(outcome.outputs, multi_label=self._labels.multi_label)
        self._width = self._width or row.size
        if row.size != self._width:
            raise BackendFailed(f"{row.size} probabilities after {self._width}")
        return row
