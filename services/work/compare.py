"""Two executors of one model side by side: how far their answers differ, and how fast they are.

Knows neither what they are nor what one was made of.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.backend import Instance
from services.inference.items import Array, Encoded, pad
from services.inference.scoring import probabilities
from services.runtime.errors import BackendFailed

GROUP = 8
ROUNDS = 3
LONGEST_S = 10.0
Batch = Mapping[str, Array]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answers:
    """What an executor gave for each batch: probabilities, and logits where it has them."""

    scores: list[Floats]
    logits: list[Array]


def answers(
    instance: Instance, items: Sequence[Encoded], fill: Mapping[str, int], *, multi_label: bool
) -> Answers:
    """The answers to each item alone, and to all in padded batches of eight."""
    alone = (pad([item], fill) for item in items)
    every = [instance.run(batch) for batch in (*alone, *(pad(g, fill) for g in _groups(items)))]
    return Answers(
        [_scores(outputs, multi_label=multi_label) for outputs in every],
        [outputs["logits"] for outputs in every if "logits" in outputs],
    )


def agreement(source: Answers, result: Answers) -> dict[str, float]:
    """How far the probabilities of the same batches differ.

    `difference_max`, `difference_mean`, `top1_agreement` (share of 1), and `logits_difference_max`
    where both give logits.
    """
    pairs = list(zip(source.scores, result.scores, strict=True))
    for before, after in pairs:
        if before.shape != after.shape:
            raise BackendFailed(f"the source gives {before.shape}, the result {after.shape}")
    gaps = np.concatenate([np.abs(before - after).ravel() for before, after in pairs])
    same = np.concatenate([b.argmax(axis=1) == a.argmax(axis=1) for b, a in pairs])
    figures = {"difference_max": float(gaps.max()), "difference_mean": float(gaps.mean())}
    figures["top1_agreement"] = float(same.mean())
    if source.logits and result.logits:
        logits = zip(source.logits, result.logits, strict=True)
        figures["logits_difference_max"] = max(float(np.abs(b - a).max()) for b, a in logits)
    return figures


def neighbour_difference(
    instance: Instance, items: Sequence[Encoded], fill: Mapping[str, int], *, multi_label: bool
) -> float:
    """The most that a probability of an item moves between alone and among seven others.

    Both times it is padded to the same length: what remains is what the neighbours do.
    """
    most = 0.0
    for group in _groups(items):
        batch = pad(group, fill)
        together = _scores(instance.run(batch), multi_label=multi_label)
        for row in range(len(group)):
            one = {name: values[row : row + 1] for name, values in batch.items()}
            alone = _scores(instance.run(one), multi_label=multi_label)
            most = max(most, float(np.abs(together[row] - alone[0]).max()))
    return most


def speeds(
    source: Instance, result: Instance, items: Sequence[Encoded], fill: Mapping[str, int]
) -> dict[str, float]:
    """Items a second of both, in batches of eight of like length: the best of turns taken."""
    by_length = sorted(items, key=lambda item: item.length)
    batches = [pad(group, fill) for group in _groups(by_length)]
    best = {"source": float("inf"), "result": float("inf")}
    until = time.perf_counter() + LONGEST_S
    for _ in range(ROUNDS):
        for name, instance in (("source", source), ("result", result)):
            best[name] = min(best[name], _seconds(instance, batches))
        if time.perf_counter() > until:
            break
    rates = {f"{name}_items_per_s": len(items) / seconds for name, seconds in best.items()}
    return rates | {"speedup": best["source"] / best["result"]}


def _groups(items: Sequence[Encoded]) -> list[Sequence[Encoded]]:
    return [items[start : start + GROUP] for start in range(0, len(items), GROUP)]


def _scores(outputs: Mapping[str, NDArray[Any]], *, multi_label: bool) -> Floats:
    """[items, labels]."""
    count = len(next(iter(outputs.values())))
    rows = [{name: values[i] for name, values in outputs.items()} for i in range(count)]
    return np.stack([probabilities(row, multi_label=multi_label) for row in rows])


def _seconds(instance: Instance, batches: Sequence[Batch]) -> float:
    started = time.perf_counter()
    for batch in batches:
        instance.run(batch)
    return max(time.perf_counter() - started, 1e-9)
