"""Judges the finished iris model on held-out flowers (development only); fits nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from models.build import MANIFEST
from models.iris.fit import read_flowers
from models.metrics import classification_metrics
from models.progress import Reporter
from models.sources import SourceError


def evaluate(folder: Path, reporter: Reporter) -> int:
    if not (folder / MANIFEST).is_file():
        raise SourceError(f"{folder}: not built yet (python -m models build iris)")
    flowers = read_flowers()
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    features = flowers.features[flowers.held_out].astype(np.float32)
    answers = session.run(["probabilities"], {"features": features})[0].astype(np.float64)
    for name, value in classification_metrics(answers, flowers.labels[flowers.held_out]).items():
        reporter.say(f"{name:<32}{value:g}")
    return 0
