"""Fits the head on human ratings (development only, needs scikit-learn); serves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from models.build import fetch_all
from models.metrics import Floats, Labels, Mask, classification_metrics, softmax
from models.progress import Reporter
from models.sentiment.data import CLEAR_RATING, RATINGS, Part, Sentence, read_sentences
from models.sentiment.encode import (
    TokenIds,
    open_session,
    pooled_features,
    probabilities,
    tokenize,
)
from models.sentiment.evaluate import held_out_metrics, neighbour_figures, probe
from models.sentiment.graph import attach_head
from models.sentiment.head import HEAD_PATH, Head, HeadFile, Tap, load_head, rounded, save_head
from models.sentiment.recipe import ENCODER, TOKENIZER

# Sentiment is plainer in the middle of this encoder than at its end, and each layer adds a little:
# validation accuracy is 0.838 from the last layer, 0.851 from the best one, 0.870 from all seven.
# Max pooling, the CLS token, a small hidden layer and regression on the ratings added nothing.
LAYERS = (
    "layer_norm",
    "layer_norm_2",
    "layer_norm_4",
    "layer_norm_6",
    "layer_norm_8",
    "layer_norm_10",
    "last_hidden_state",
)
TAPS = tuple(Tap(layer, "mean") for layer in LAYERS)
INVERSE_REGULARISATION = (0.001, 0.002, 0.003, 0.005, 0.01)
WEAKEST_RATING = 0.25
TEMPERATURES = np.round(np.arange(0.5, 2.0, 0.005), 4)

# A refit elsewhere differs by the last bits of the encoder's arithmetic; more is another head.
PROBABILITY_TOLERANCE = 0.01
ACCURACY_TOLERANCE = 0.003
# The graph computes in float32 what the recipe computes in float64.
SURGERY_TOLERANCE = 1e-4


class NotReproducedError(Exception):
    """What was computed twice came out differently."""


@dataclass(frozen=True)
class Material:
    """Sentences with their token ids and pooled features, row by row."""

    encoder: ModelProto
    sentences: list[Sentence]
    items: list[TokenIds]
    features: Floats

    def rows(self, parts: Sequence[Part], weakest: float) -> Mask:
        return np.array([s.part in parts and abs(s.rating) >= weakest for s in self.sentences])

    def labels(self, rows: Mask) -> Labels:
        return np.array([s.label for s in self.sentences])[rows]

    def strengths(self, rows: Mask) -> Floats:
        return np.array([abs(s.rating) for s in self.sentences])[rows]


def fit(reporter: Reporter, *, check: bool) -> int:
    with TemporaryDirectory(prefix="gristmill-fit-") as scratch:
        inputs = Path(scratch) / "inputs"
        material = _prepare(inputs, reporter)
        head = fit_head(material, reporter)
        if check:
            return _compare(material, head, load_head(), reporter)
        with reporter.working("sentiment: judging the finished model"):
            file = _judge(material, head, inputs / TOKENIZER.file.name)
    save_head(file)
    reporter.say(f"wrote {HEAD_PATH}\n{file.metrics}\n{file.neighbours}\n{file.probes}")
    return 0


def _prepare(inputs: Path, reporter: Reporter) -> Material:
    fetch_all((ENCODER, TOKENIZER, RATINGS), inputs, None, reporter)
    sentences = read_sentences(inputs / RATINGS.file.name)
    items = tokenize(inputs / TOKENIZER.file.name, [s.text for s in sentences])
    encoder = onnx.load(inputs / ENCODER.file.name)
    with reporter.counting("sentences through the encoder") as progress:
        features = pooled_features(encoder, items, TAPS, lambda n: progress(n, len(items)))
    return Material(encoder, sentences, items, features)


def fit_head(material: Material, reporter: Reporter) -> Head:
    """Validation chooses regularisation and temperature; the head is then fitted on both parts."""
    labels = material.labels(material.rows(["validation"], CLEAR_RATING))
    tried: list[tuple[float, float, float]] = []
    for c in INVERSE_REGULARISATION:
        scores = _validation_scores(material, c)
        loss, temperature = _best_temperature(scores, labels)
        tried.append((loss, c, temperature))
        accuracy = np.mean((scores > 0) == labels)
        reporter.say(f"C={c}: validation accuracy {accuracy:.4f}, log loss {loss:.4f}")
    _, c, temperature = min(tried)
    weights, bias = _logistic(material, material.rows(["train", "validation"], WEAKEST_RATING), c)
    return rounded(Head(TAPS, weights, bias, temperature))


def _validation_scores(material: Material, c: float) -> Floats:
    weights, bias = _logistic(material, material.rows(["train"], WEAKEST_RATING), c)
    validation = material.rows(["validation"], CLEAR_RATING)
    return np.asarray(material.features[validation] @ weights + bias)


def _logistic(material: Material, rows: Mask, c: float) -> tuple[Floats, float]:
    """Each sentence counts by how strongly it was rated; the weights are for raw features."""
    features = material.features[rows]
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-6)
    model.fit(scaler.transform(features), material.labels(rows), material.strengths(rows))
    weights = model.coef_[0] / scaler.scale_
    return weights, float(model.intercept_[0] - weights @ scaler.mean_)


def _best_temperature(scores: Floats, labels: Labels) -> tuple[float, float]:
    """The smallest log loss, and the temperature that gives it."""
    signed = np.where(labels == 1, scores, -scores)
    losses = [float(np.logaddexp(0, -signed / t).mean()) for t in TEMPERATURES]
    best = int(np.argmin(losses))
    return losses[best], float(TEMPERATURES[best])


def _judge(material: Material, head: Head, tokenizer: Path) -> HeadFile:
    session = open_session(attach_head(material.encoder, head))
    chosen = np.flatnonzero(material.rows(["held_out"], CLEAR_RATING))
    answers = probabilities(session, [material.items[i] for i in chosen], batch_size=1)
    gap = np.abs(answers - softmax(head.logits(material.features[chosen]))).max()
    if gap > SURGERY_TOLERANCE:
        raise NotReproducedError(f"the graph and the numpy recipe differ by {gap}")
    return HeadFile(
        head,
        held_out_metrics(session, material.sentences, material.items),
        neighbour_figures(session, material.sentences, material.items),
        probe(session, tokenizer),
    )


def _compare(material: Material, head: Head, committed: HeadFile, reporter: Reporter) -> int:
    rows = material.rows(["held_out"], CLEAR_RATING)
    labels, features = material.labels(rows), material.features[rows]
    ours, theirs = softmax(head.logits(features)), softmax(committed.head.logits(features))
    gap = float(np.abs(ours - theirs).max())
    accuracy, was = classification_metrics(ours, labels)["accuracy"], committed.metrics["accuracy"]
    reporter.say(f"a probability differs by at most {gap:.6f}; accuracy {accuracy}, was {was}")
    same = gap <= PROBABILITY_TOLERANCE and abs(accuracy - was) <= ACCURACY_TOLERANCE
    return 0 if same else 1
