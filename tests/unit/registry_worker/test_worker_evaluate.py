"""An evaluation says what scikit-learn and the models' own evaluation say, or names the line."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from models.metrics import softmax
from models.sentiment.encode import open_session, probabilities, tokenize
from services.inference.examples import MAX_LINE_BYTES
from services.runtime.errors import FailedPrecondition, InvalidRequest
from services.work import evaluate as module
from services.work.evaluate import evaluate
from tests.harness import soon
from tests.unit.inference.pictures import by_channel, coloured, file
from tests.unit.registry_worker.folders import LABELS, Heard, built, linear, lines, two_tensors

IDENTITY = np.eye(3)
SENTENCES = tuple(
    f"{start} {middle} {end}."
    for start in ("The soup", "This film", "My new phone", "The hotel room", "Our guide")
    for middle in ("was", "turned out", "seemed", "is not")
    for end in (
        "wonderful",
        "terrible",
        "a waste of money and of the whole long afternoon that we gave to it",
        "better than anything that I have had in years, and I would come back tomorrow",
        "broken",
    )
)


async def test_figures_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(700, 3)).astype(np.float32)
    truth = (features + rng.normal(size=features.shape)).argmax(axis=1)
    data = lines(
        tmp_path / "data.jsonl",
        *(
            {"features": [float(v) for v in row], "label": LABELS[t] if i % 2 else int(t)}
            for i, (row, t) in enumerate(zip(features, truth, strict=True))
        ),
    )
    heard = Heard()
    folder = linear(tmp_path / "m", IDENTITY, batching={"max_batch_size": 16, "instances": 2})
    found = await soon(evaluate(folder, data, "held_", heard))
    expected = softmax(features.astype(np.float64))
    predicted = expected.argmax(axis=1)
    for name, average in (("f1", reference.f1_score), ("recall", reference.recall_score)):
        assert found[f"held_{name}_macro"] == pytest.approx(
            average(truth, predicted, average="macro")
        )
    precision = reference.precision_score(truth, predicted, average="macro")
    assert found["held_precision_macro"] == pytest.approx(precision)
    assert found["held_accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert found["held_log_loss"] == pytest.approx(
        reference.log_loss(truth, expected, labels=[0, 1, 2]), rel=1e-6
    )
    assert found["held_ece"] == pytest.approx(calibration(expected, truth), rel=1e-5)
    assert (found["held_examples"], found["held_errors"]) == (700, 0)
    assert found["held_items_per_s"] > 0
    assert all(0 <= fraction <= 1 for fraction, _ in heard)


def calibration(expected: Any, truth: Any) -> float:
    """Expected calibration error, written out."""
    total = 0.0
    for low in np.arange(15) / 15:
        confidence = expected.max(axis=1)
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            right = (expected.argmax(axis=1) == truth)[inside]
            total += inside.mean() * abs(right.mean() - confidence[inside].mean())
    return total


async def test_a_class_that_never_occurs_does_not_count(tmp_path: Path) -> None:
    data = lines(
        tmp_path / "d",
        *({"features": [1 - i % 2, i % 2, -9], "label": "ab"[i % 2]} for i in range(6)),
    )
    found = await soon(evaluate(linear(tmp_path / "m", IDENTITY), data, "", Heard()))
    assert (found["accuracy"], found["f1_macro"]) == (1.0, 1.0)


async def test_a_multi_label_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    features = rng.normal(size=(300, 3)).astype(np.float32)
    truth = features + rng.normal(size=features.shape) > 0
    data = lines(
        tmp_path / "d",
        *(
            {"features": row.tolist(), "label": [LABELS[i] for i in np.flatnonzero(one)]}
            for row, one in zip(features.astype(float), truth, strict=True)
        ),
    )
    output = {"labels": list(LABELS), "multi_label": True}
    found = await soon(evaluate(linear(tmp_path / "m", IDENTITY, output=output), data, "", Heard()))
    predicted = features >= 0
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert found["f1_macro"] == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
    logistic = 1 / (1 + np.exp(-features.astype(np.float64)))
    loss = np.mean([reference.log_loss(truth[:, i], logistic[:, i]) for i in range(3)])
    assert found["log_loss"] == pytest.approx(loss, rel=1e-5)


async def test_sentiment_as_its_own_evaluation_has_it(tmp_path: Path) -> None:
    folder = built("sentiment")
    items = tokenize(folder / "tokenizer.json", SENTENCES)
    alone = probabilities(open_session_of(folder), items, batch_size=1)
    truth = np.arange(len(SENTENCES)) % 2
    names = ("negative", "positive")
    data = lines(
        tmp_path / "d",
        *({"text": s, "label": names[t]} for s, t in zip(SENTENCES, truth, strict=True)),
    )
    found = await soon(evaluate(folder, data, "", Heard()))
    assert found["accuracy"] == pytest.approx(np.mean(alone.argmax(axis=1) == truth))
    loss = -np.log(alone[np.arange(len(truth)), truth]).mean()
    assert found["log_loss"] == pytest.approx(loss, rel=1e-4)


def open_session_of(folder: Path) -> Any:
    """The model as its own evaluation opens it."""
    import onnx

    return open_session(onnx.load(folder / "model.onnx"))


async def test_an_image_model(tmp_path: Path) -> None:
    folder = by_channel(tmp_path / "m")
    rows = []
    for index, label in enumerate(("red", "green", "blue")):
        pixels = coloured(40, 30) // 4
        pixels[..., index] += 150
        rows += [
            {"image": base64.b64encode(file(pixels, kind)).decode(), "label": label}
            for kind in ("PNG", "JPEG", "WEBP")
        ]
    rows.append({"image": base64.b64encode(b"no image").decode(), "label": "red"})
    found = await soon(evaluate(folder, lines(tmp_path / "d", *rows), "", Heard()))
    assert (found["examples"], found["errors"], found["accuracy"]) == (10, 1, 1.0)


async def test_a_model_of_tensors(tmp_path: Path) -> None:
    """Of several shapes, which cannot share a batch."""
    folder, rows = two_tensors(tmp_path / "m"), []
    for index in range(30):
        table = np.zeros((1 + index % 4, 3))
        table[:, index % 3] = 9
        said = {
            "table": {"datatype": "FP32", "shape": table.shape, "data": table.ravel().tolist()},
            "weight": {"datatype": "FP32", "shape": [1], "data": [1]},
        }
        rows.append({"tensors": said, "label": LABELS[index % 3]})
    found = await soon(evaluate(folder, lines(tmp_path / "d", *rows), "", Heard()))
    assert (found["examples"], found["errors"], found["accuracy"]) == (30, 0, 1.0)


async def test_items_that_are_refused_are_counted(tmp_path: Path) -> None:
    data = lines(
        tmp_path / "d",
        {"features": [1, 0, 0], "label": "a"},
        "",
        {"features": [1, 0], "label": "a"},
        {"text": "no vector", "label": "a"},
        {"features": [1e300, 0, 0], "label": "a"},
        {"features": [0, 0, 1], "label": "b"},
    )
    found = await soon(evaluate(linear(tmp_path / "m", IDENTITY), data, "", Heard()))
    assert (found["examples"], found["errors"], found["accuracy"]) == (5, 3, 0.5)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"features": [1, 0, 0], "label": "d"}, "line 2: label 'd' is none of the labels: a, b, c"),
        ({"features": [1, 0, 0], "label": 3}, "line 2: label 3 is none"),
        ({"features": [1, 0, 0], "label": True}, "line 2: a label is a name or an index"),
        ({"features": [1, 0, 0], "label": -1}, "line 2: label -1 is none"),
        ({"features": [1, 0, 0]}, 'line 2: needs a "label"'),
        ({"features": [1, 0, 0], "probabilities": [1, 0, 0]}, 'line 2: needs a "label"'),
        ({"features": ["1"], "label": 1}, "line 2: features must be numbers"),
        ({"features": [10**400], "label": 1}, "line 2: has a number without bounds"),
        ({"pair": "x", "label": 1}, 'line 2: needs "text"'),
        ({"text": "x" * MAX_LINE_BYTES, "label": 1}, "line 2: is longer than"),
        ("{", "line 2: is no JSON"),
        ("[]", "line 2: is no JSON object"),
        ({"features": [1, 0, 0], "label": ["a"]}, "line 2: this model needs one label"),
    ],
)
async def test_a_malformed_line_is_named(tmp_path: Path, bad: Any, said: str) -> None:
    data = lines(tmp_path / "d", {"features": [1, 0, 0], "label": "a"}, bad)
    with pytest.raises(InvalidRequest) as raised:
        await soon(evaluate(linear(tmp_path / "m", IDENTITY), data, "", Heard()))
    assert raised.value.message.startswith(said)


async def test_an_index_past_what_an_unnamed_model_gives_is_named(tmp_path: Path) -> None:
    folder = linear(tmp_path / "m", IDENTITY, output={})
    data = lines(tmp_path / "d", *({"features": [1, 0, 0], "label": i} for i in range(4)))
    with pytest.raises(InvalidRequest, match="line 4: label 3"):
        await soon(evaluate(folder, data, "", Heard()))


async def test_nothing_to_say_is_an_error(tmp_path: Path) -> None:
    folder = linear(tmp_path / "m", IDENTITY)
    with pytest.raises(InvalidRequest, match="no example"):
        await soon(evaluate(folder, lines(tmp_path / "d"), "", Heard()))
    wrong = lines(tmp_path / "d", *({"text": "x", "label": "a"} for _ in range(3)))
    with pytest.raises(FailedPrecondition, match=r"none of 3 examples.*takes float_features"):
        await soon(evaluate(folder, wrong, "", Heard()))


async def test_memory_is_bounded_by_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    admit = module.Admission.admit

    def counting(self: Any, *args: Any) -> Any:
        nonlocal most
        permit = admit(self, *args)
        most = max(most, self.items)
        return permit

    monkeypatch.setattr(module.Admission, "admit", counting)
    data = lines(tmp_path / "d", *({"features": [1, 0, 0], "label": 0} for _ in range(2000)))
    folder = linear(tmp_path / "m", IDENTITY, batching={"max_batch_size": 8})
    found = await soon(evaluate(folder, data, "", Heard()))
    assert found["examples"] == 2000
    assert 8 < most <= 10 * 8


async def test_it_can_be_cancelled(tmp_path: Path) -> None:
    data = lines(tmp_path / "d", *({"text": "a b c " * 40, "label": 0} for _ in range(3000)))
    task = asyncio.ensure_future(evaluate(built("sentiment"), data, "", Heard()))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
