"""What the machine can do without a server: the model in a loop in this process, over real texts.

Texts are the held-out sentences of the sentiment model's data, a quarter of them two to six joined,
of 5 to 120 tokens.
"""

import queue
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.classifier_server import CACHE
from models.sentiment.data import RATINGS, read_sentences
from services.inference import loading
from services.inference.backend import Instance
from services.inference.items import Encoded, TextItem, pad
from services.inference.manifest import Batching, Manifest

SHORTEST, LONGEST = 5, 120
JOINED = 0.25
WINDOW = 64
"""As many as there are callers: what may be sorted is what waits."""


class Limit:
    """The sentiment model, its instances, and encoded texts."""

    def __init__(self, count: int) -> None:
        self.folder = CACHE / "models" / "sentiment"
        self._manifest = Manifest.read(self.folder)
        self._loaded = loading.load(self._manifest, self.folder)
        self._fill = self._loaded.preprocessor.fill
        self.texts: list[str] = []
        self.items: list[Encoded] = []
        for text, item in self._real(random.Random(0)):
            self.texts.append(text)
            self.items.append(item)
            if len(self.items) == count:
                return

    def best_sorted(self) -> tuple[float, int]:
        """Items a second of the best way there is when 64 wait: sorted, cut at a token budget."""
        return max((self.rate(_cut(self.items, tokens)), tokens) for tokens in (128, 256, 512))

    def one_by_one(self) -> float:
        """Items a second without any batching, on the same instances."""
        return self.rate([[item] for item in self.items])

    def fifo(self, size: int) -> float:
        """Items a second in padded batches in order of arrival, on one instance of all cores."""
        single = self._manifest.model_copy(
            update={"batching": Batching(max_batch_size=size, instances=1)}
        )
        loaded = loading.load(single, self.folder)
        items = self.items[: max(size, len(self.items) // 2)]
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        return self.rate(batches, loaded.instances)

    def rate(self, batches: Sequence[Sequence[Encoded]], on: Sequence[Instance] = ()) -> float:
        """Items a second over all instances."""
        waiting: queue.SimpleQueue[Sequence[Encoded] | None] = queue.SimpleQueue()
        instances = on or self._loaded.instances
        for batch in (*batches, *[None] * len(instances)):
            waiting.put(batch)

        def work(instance: Instance) -> None:
            while batch := waiting.get():
                instance.run(pad(batch, self._fill))

        threads = [threading.Thread(target=work, args=(one,)) for one in instances]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(len(batch) for batch in batches) / (time.perf_counter() - started)

    def alone_ms(self, text: str, runs: int) -> float:
        """The median of one call of the model with nothing around it, in milliseconds."""
        (item,) = self._loaded.preprocessor.encode([TextItem(text)])
        if not isinstance(item, Encoded):
            raise item
        batch, times = pad([item], self._fill), []
        for _ in range(runs):
            started = time.perf_counter()
            self._loaded.instances[0].run(batch)
            times.append(time.perf_counter() - started)
        return sorted(times)[runs // 2] * 1000

    def _real(self, rng: random.Random) -> Iterator[tuple[str, Encoded]]:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / RATINGS.file.name
            RATINGS.source.fetch(RATINGS.file, archive, lambda done, total: None)
            sentences = [s.text for s in read_sentences(archive) if s.part == "held_out"]
        while True:
            parts = rng.randint(2, 6) if rng.random() < JOINED else 1
            text = " ".join(" ".join(rng.choice(sentences).split()) for _ in range(parts))
            (item,) = self._loaded.preprocessor.encode([TextItem(text)])
            if isinstance(item, Encoded) and SHORTEST <= item.length <= LONGEST:
                yield text, item


def _cut(items: Sequence[Encoded], tokens: int) -> list[list[Encoded]]:
    """Batches within a token budget, of each window of what waits, sorted."""
    batches: list[list[Encoded]] = []
    for at in range(0, len(items), WINDOW):
        batch: list[Encoded] = []
        for item in sorted(items[at : at + WINDOW], key=lambda one: one.length):
            if batch and item.length * (len(batch) + 1) > tokens:
                batches.append(batch)
                batch = []
            batch.append(item)
        batches.append(batch)
    return batches
