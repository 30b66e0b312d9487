"""Graph surgery: encoder, masked pooling and head become one ONNX model; knows no text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.sentiment.head import Head, Tap

NEVER_THE_MAXIMUM = -1e9


def attach_head(encoder: ModelProto, head: Head) -> ModelProto:
    """A copy that gives `logits` and `probabilities`, float32 [batch, 2], negative first."""
    model = ModelProto()
    model.CopyFrom(encoder)
    graph = model.graph
    graph.node.extend(_mask_nodes())
    for index, tap in enumerate(head.taps):
        graph.node.extend(_pooling_nodes(tap, f"head/features_{index}"))
    graph.node.extend(_output_nodes(len(head.taps)))
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(constant for constant in _constants(head) if constant.name in used)
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])
        for name in ("logits", "probabilities")
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _mask_nodes() -> Iterable[NodeProto]:
    """The attention mask as floats [batch, sequence, 1], and its token counts [batch, 1]."""
    yield helper.make_node("Cast", ["attention_mask"], ["head/mask_2d"], to=TensorProto.FLOAT)
    yield helper.make_node("Unsqueeze", ["head/mask_2d", "head/last_axis"], ["head/mask"])
    yield helper.make_node(
        "ReduceSum", ["head/mask", "head/sequence_axis"], ["head/length"], keepdims=0
    )
    yield helper.make_node("Max", ["head/length", "head/one"], ["head/count"])


def _pooling_nodes(tap: Tap, output: str) -> Iterable[NodeProto]:
    inside = f"{output}/inside"
    if tap.pooling == "cls":
        yield helper.make_node("Gather", [tap.tensor, "head/first"], [output], axis=1)
    elif tap.pooling == "mean":
        yield helper.make_node("Mul", [tap.tensor, "head/mask"], [inside])
        yield helper.make_node(
            "ReduceSum", [inside, "head/sequence_axis"], [f"{output}/sum"], keepdims=0
        )
        yield helper.make_node("Div", [f"{output}/sum", "head/count"], [output])
    else:
        yield helper.make_node("Greater", ["head/mask", "head/zero"], [f"{output}/real"])
        yield helper.make_node("Where", [f"{output}/real", tap.tensor, "head/lowest"], [inside])
        yield helper.make_node("ReduceMax", [inside], [output], axes=[1], keepdims=0)


def _output_nodes(taps: int) -> Iterable[NodeProto]:
    features = [f"head/features_{index}" for index in range(taps)]
    yield helper.make_node("Concat", features, ["head/features"], axis=1)
    yield helper.make_node("Gemm", ["head/features", "head/weights", "head/bias"], ["head/scores"])
    yield helper.make_node("Div", ["head/scores", "head/temperature"], ["logits"])
    yield helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)


def _constants(head: Head) -> list[TensorProto]:
    half = head.weights / 2
    floats = {
        "weights": np.stack([-half, half], axis=1),
        "bias": np.array([-head.bias / 2, head.bias / 2]),
        "temperature": np.array(head.temperature),
        "zero": np.array(0.0),
        "one": np.array(1.0),
        "lowest": np.array(NEVER_THE_MAXIMUM),
    }
    integers = {"last_axis": np.array([2]), "sequence_axis": np.array([1]), "first": np.array(0)}
    return [
        *(
            numpy_helper.from_array(value.astype(np.float32), f"head/{name}")
            for name, value in floats.items()
        ),
        *(
            numpy_helper.from_array(value.astype(np.int64), f"head/{name}")
            for name, value in integers.items()
        ),
    ]
