"""Measures what a batch costs on this host, over batch sizes and lengths; knows no queue.

Runs one instance as serving would configure it, threads and all, while nothing else runs.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference import loading
from services.inference.backend import Instance
from services.inference.fingerprint import fingerprint
from services.inference.loading import Loaded
from services.inference.manifest import Manifest
from services.runtime.errors import InvalidRequest
from services.work import samples
from services.work.pace import Paced, Progress

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 64, 128, 256)
MAX_BATCH_SIZE = 4096
MIN_RUNS = 10
POINT_S = 0.5
WARM_S = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """Compute time in microseconds of a batch of so many items of so many tokens each."""

    batch_size: int
    length: int
    p50_us: int
    p95_us: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A measured curve, and the host and settings that it holds for."""

    fingerprint: str
    points: list[Point]
    metrics: dict[str, float]
    """`p50_ms_batch_{n}` and `p95_ms_batch_{n}` in milliseconds, at the longest length."""


def profile(
    folder: Path, batch_sizes: Sequence[int], lengths: Sequence[int], progress: Progress
) -> Profile:
    """Measure a model folder; empty sizes or lengths mean the usual ones.

    Lengths beyond the model's `max_tokens` are left out, and a model of anything but text has the
    length 1 alone. Raises InvalidRequest where nothing is left to measure.
    """
    manifest = Manifest.read(folder)
    sizes = sorted(set(batch_sizes or BATCH_SIZES))
    if sizes[0] < 1 or sizes[-1] > MAX_BATCH_SIZE:
        raise InvalidRequest.field("batch_sizes", f"must be from 1 to {MAX_BATCH_SIZE}")
    fitting = _fitting(manifest, lengths or LENGTHS)
    loaded = loading.load(manifest, folder)
    try:
        points = _measure(loaded, manifest, folder, sizes, fitting, Paced(progress))
        host = fingerprint(loaded.backend, len(loaded.instances))
    finally:
        loaded.backend.close()
    metrics: dict[str, float] = {}
    for point in points:
        if point.length == fitting[-1]:
            metrics[f"p50_ms_batch_{point.batch_size}"] = point.p50_us / 1000
            metrics[f"p95_ms_batch_{point.batch_size}"] = point.p95_us / 1000
    return Profile(host, points, metrics)


def _fitting(manifest: Manifest, lengths: Sequence[int]) -> list[int]:
    if manifest.input is None or not manifest.input.has_tokens:
        return [1]
    most = manifest.input.max_tokens
    fitting = sorted({length for length in lengths if 1 <= length <= most})
    if not fitting:
        raise InvalidRequest.field("lengths", f"none is from 1 to the model's {most} tokens")
    return fitting


def _measure(
    loaded: Loaded,
    manifest: Manifest,
    folder: Path,
    sizes: Sequence[int],
    lengths: Sequence[int],
    progress: Paced,
) -> list[Point]:
    items = samples.items(folder, manifest, loaded.backend.inputs)
    longest = max(samples.encoded(loaded.preprocessor, items), key=lambda item: item.tokens)
    whole, done, points = sum(sizes) * sum(lengths), 0, []
    for length in lengths:
        # What has no tokens keeps its shape.
        rows = {
            name: np.resize(row, length) if longest.tokens else row
            for name, row in longest.inputs.items()
        }
        for size in sizes:
            progress(done / whole, f"batches of {size} items of {length}")
            batch = {name: np.repeat(row[None], size, axis=0) for name, row in rows.items()}
            p50, p95 = np.percentile(_times_us(loaded.instances[0], batch), (50, 95))
            points.append(Point(size, length, max(1, round(p50)), max(1, round(p95))))
            done += size * length
    return points


def _times_us(instance: Instance, batch: Mapping[str, NDArray[Any]]) -> list[float]:
    """At least ten runs, and as many as half a second allows, once caches and clocks are warm."""
    until = time.perf_counter() + WARM_S
    instance.run(batch)
    while time.perf_counter() < until:
        instance.run(batch)
    times: list[float] = []
    until = time.perf_counter() + POINT_S
    while len(times) < MIN_RUNS or time.perf_counter() < until:
        started = time.perf_counter()
        instance.run(batch)
        times.append((time.perf_counter() - started) * 1e6)
    return times
