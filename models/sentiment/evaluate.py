"""Judges the finished sentiment model (development only); knows nothing of fitting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime

from models.build import MANIFEST, fetch_all
from models.metrics import Figures, classification_metrics
from models.progress import Reporter
from models.sentiment.data import RATINGS, Sentence, read_sentences
from models.sentiment.encode import TokenIds, open_session, probabilities, tokenize
from models.sources import SourceError

NEIGHBOUR_SAMPLE = 500
# What a newcomer types first: short, often negated, and harder than the held-out sentences.
PROBES = (
    "not bad at all",
    "I expected better",
    "nothing to complain about",
    "I would not recommend it",
)


def evaluate(folder: Path, reporter: Reporter) -> int:
    if not (folder / MANIFEST).is_file():
        raise SourceError(f"{folder}: not built yet (python -m models build sentiment)")
    with TemporaryDirectory(prefix="gristmill-evaluate-") as scratch:
        fetch_all((RATINGS,), Path(scratch) / "inputs", None, reporter)
        sentences = read_sentences(Path(scratch) / "inputs" / RATINGS.file.name)
    session = open_session(onnx.load(folder / "model.onnx"))
    items = tokenize(folder / "tokenizer.json", [s.text for s in sentences])
    with reporter.working("sentiment: classifying held-out sentences"):
        figures = held_out_metrics(session, sentences, items)
    figures.update(probe(session, folder / "tokenizer.json"))
    for name, value in figures.items():
        reporter.say(f"{name:<32}{value:g}")
    return 0


def held_out_metrics(
    session: onnxruntime.InferenceSession,
    sentences: Sequence[Sentence],
    items: Sequence[TokenIds],
) -> Figures:
    """Figures on clearly rated sentences, and the accuracy on all that lean either way."""
    chosen = [i for i, s in enumerate(sentences) if s.part == "held_out" and s.rating]
    answers = probabilities(session, [items[i] for i in chosen], batch_size=1)
    labels = np.array([sentences[i].label for i in chosen])
    clear = np.array([sentences[i].is_clear for i in chosen])
    figures = classification_metrics(answers[clear], labels[clear])
    figures["n_any_strength"] = float(len(chosen))
    figures["accuracy_any_strength"] = classification_metrics(answers, labels)["accuracy"]
    return figures


def neighbour_figures(
    session: onnxruntime.InferenceSession,
    sentences: Sequence[Sentence],
    items: Sequence[TokenIds],
) -> Figures:
    """How far 500 held-out answers move between running alone and in padded batches."""
    pairs = zip(items, sentences, strict=True)
    sample = [item for item, s in pairs if s.part == "held_out"][:NEIGHBOUR_SAMPLE]
    alone = probabilities(session, sample, batch_size=1)
    figures: Figures = {"sentences": float(len(sample))}
    for size in (8, 32):
        batched = probabilities(session, sample, batch_size=size)
        gap = np.abs(batched - alone)
        flips = np.sum(batched.argmax(axis=1) != alone.argmax(axis=1))
        figures[f"max_difference_{size}"] = float(f"{gap.max():.1e}")
        figures[f"mean_difference_{size}"] = float(f"{gap.mean():.1e}")
        figures[f"label_flips_{size}"] = float(flips)
    return figures


def probe(session: onnxruntime.InferenceSession, tokenizer_path: Path) -> Figures:
    """P(positive) of each probe."""
    answers = probabilities(session, tokenize(tokenizer_path, PROBES), batch_size=1)
    return {text: round(float(row[1]), 3) for text, row in zip(PROBES, answers, strict=True)}
