"""Graph surgery on a tiny encoder gives what the numpy recipe gives, whatever the padding."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.metrics import softmax
from models.sentiment.encode import open_session, padded_inputs, pooled_features, probabilities
from models.sentiment.graph import attach_head
from models.sentiment.head import Head, Tap

HIDDEN, VOCABULARY = 4, 11
ITEMS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [3, 1]]
TAPS = (Tap("layer_norm", "mean"), Tap("last_hidden_state", "cls"), Tap("layer_norm", "max"))


@pytest.fixture
def encoder() -> ModelProto:
    """A table of embeddings, then the tanh of a matrix; padding is zero in neither layer."""
    rng = np.random.default_rng(7)
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["layer_norm"]),
        helper.make_node("MatMul", ["layer_norm", "matrix"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["last_hidden_state"]),
    ]
    tables = {"table": (VOCABULARY, HIDDEN), "matrix": (HIDDEN, HIDDEN)}
    graph = helper.make_graph(
        nodes,
        "encoder",
        ids,
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in tables.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def head() -> Head:
    weights = np.random.default_rng(8).normal(size=len(TAPS) * HIDDEN)
    return Head(TAPS, weights, bias=0.3, temperature=1.7)


def test_the_graph_equals_the_numpy_recipe(encoder: ModelProto, head: Head) -> None:
    features = pooled_features(encoder, ITEMS, TAPS, lambda done: None)
    assert features.shape == (len(ITEMS), len(TAPS) * HIDDEN)
    session = open_session(attach_head(encoder, head))
    logits, answers = session.run(["logits", "probabilities"], dict(padded_inputs(ITEMS)))
    assert logits.dtype == answers.dtype == np.float32
    np.testing.assert_allclose(logits, head.logits(features), atol=1e-5)
    np.testing.assert_allclose(answers, softmax(head.logits(features)), atol=1e-5)


def test_padding_and_neighbours_change_nothing(encoder: ModelProto, head: Head) -> None:
    session = open_session(attach_head(encoder, head))
    alone, together = (probabilities(session, ITEMS, size) for size in (1, len(ITEMS)))
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_outputs_are_named_and_shaped_and_the_encoder_is_untouched(
    encoder: ModelProto, head: Head
) -> None:
    before = encoder.SerializeToString()
    outputs = open_session(attach_head(encoder, head)).get_outputs()
    assert [(o.name, o.shape) for o in outputs] == [
        ("logits", ["batch", 2]),
        ("probabilities", ["batch", 2]),
    ]
    assert encoder.SerializeToString() == before


def test_no_constant_is_left_unused(encoder: ModelProto, head: Head) -> None:
    mean_only = Head(TAPS[:1], head.weights[:HIDDEN], head.bias, head.temperature)
    graph = attach_head(encoder, mean_only).graph
    used = {name for node in graph.node for name in node.input}
    assert {constant.name for constant in graph.initializer} <= used
