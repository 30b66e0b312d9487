"""The committed head, a weight vector per pooled encoder layer; knows neither ONNX nor fitting."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from models.metrics import Figures, Floats

Pooling = Literal["mean", "cls", "max"]
HEAD_PATH = Path(__file__).with_name("head.json")


@dataclass(frozen=True)
class Tap:
    """An encoder tensor [batch, sequence, hidden] and how it becomes [batch, hidden]."""

    tensor: str
    pooling: Pooling


@dataclass(frozen=True)
class Head:
    """`(features @ weights + bias) / temperature` is the log-odds of `positive`."""

    taps: tuple[Tap, ...]
    weights: Floats
    bias: float
    temperature: float

    def logits(self, features: Floats) -> Floats:
        """`features` [n, taps x hidden] -> [n, 2], negative first; the two sum to zero."""
        half = (features @ self.weights + self.bias) / self.temperature / 2
        return np.stack([-half, half], axis=1)


@dataclass(frozen=True)
class HeadFile:
    """head.json: the head, and what was measured of the finished model when it was fitted.

    `neighbours` says how far answers move with their batch; `probes` maps texts to P(positive).
    """

    head: Head
    metrics: Figures
    neighbours: Figures
    probes: Figures


def load_head(path: Path = HEAD_PATH) -> HeadFile:
    content = json.loads(path.read_text(encoding="utf-8"))
    taps = tuple(Tap(tap["tensor"], tap["pooling"]) for tap in content["taps"])
    weights = np.concatenate([np.asarray(tap["weights"], np.float64) for tap in content["taps"]])
    head = Head(taps, weights, float(content["bias"]), float(content["temperature"]))
    return HeadFile(head, content["metrics"], content["neighbours"], content["probes"])


def save_head(file: HeadFile, path: Path = HEAD_PATH) -> None:
    head = file.head
    vectors = np.split(head.weights, len(head.taps))
    fields = {
        "labels": ["negative", "positive"],
        "bias": head.bias,
        "temperature": head.temperature,
        "metrics": file.metrics,
        "neighbours": file.neighbours,
        "probes": file.probes,
    }
    taps = [
        {"tensor": tap.tensor, "pooling": tap.pooling, "weights": vector.tolist()}
        for tap, vector in zip(head.taps, vectors, strict=True)
    ]
    # One line per tap keeps the file short and its diffs readable.
    lines = [f'"{key}": {_compact(value)},' for key, value in fields.items()]
    lines += ['"taps": [', ",\n".join(_compact(tap) for tap in taps), "]"]
    path.write_text("{\n" + "\n".join(lines) + "\n}\n", encoding="utf-8")


def rounded(head: Head) -> Head:
    """Five significant digits: what is measured must be what head.json keeps."""
    weights = np.array([float(f"{w:.4e}") for w in head.weights])
    return Head(head.taps, weights, float(f"{head.bias:.4e}"), round(head.temperature, 4))


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
