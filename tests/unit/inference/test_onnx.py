"""ONNX Runtime on a model made here: its signature, its instances; batching is harmless."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from services.inference.backend import TensorSpec
from services.inference.backends.onnx import (
    DATATYPES,
    LEVELS,
    BoundInstance,
    OnnxBackend,
    OnnxInstance,
)
from services.inference.items import Encoded, pad
from services.inference.manifest import OnnxOptions
from services.runtime.errors import InvalidRequest

WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)


def saved(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], *more: Any) -> Path:
    """A checked model file."""
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(more))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """logits = x W."""
    return saved(
        tmp_path / "linear.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        helper.make_tensor("w", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.ravel().tolist()),
    )


@pytest.fixture
def masked_sum(tmp_path: Path) -> Path:
    """total = the sum over tokens of id x mask: padding must not count."""
    ids, mask = "input_ids", "attention_mask"
    nodes = [
        helper.make_node("Mul", [ids, mask], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axes"], ["total"], keepdims=0),
    ]
    return saved(
        tmp_path / "sum.onnx",
        nodes,
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in (ids, mask)
        ],
        [helper.make_tensor_value_info("total", TensorProto.INT64, ["n"])],
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
    )


def row(backend: OnnxBackend, **inputs: NDArray[Any]) -> dict[str, list[Any]]:
    """The outputs of one item alone."""
    outputs = backend.instance().run({name: value[None] for name, value in inputs.items()})
    return {name: value[0].tolist() for name, value in outputs.items()}


def test_the_signature_is_the_models_own(linear: Path, masked_sum: Path) -> None:
    backend = OnnxBackend(linear)
    assert backend.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert backend.outputs == (TensorSpec("logits", "FP32", (-1, 2)),)
    assert (backend.name, backend.device) == ("onnxruntime", "cpu")
    names = [(spec.name, spec.datatype, spec.shape) for spec in OnnxBackend(masked_sum).inputs]
    assert names == [("input_ids", "INT64", (-1, -1)), ("attention_mask", "INT64", (-1, -1))]


def test_types_bear_the_protocols_names() -> None:
    assert DATATYPES["tensor(string)"] == "BYTES"
    assert DATATYPES["tensor(bfloat16)"] == "BF16"
    assert len(set(DATATYPES.values())) == len(DATATYPES)


def test_a_batch_gives_what_its_items_give_one_by_one(linear: Path) -> None:
    backend = OnnxBackend(linear)
    rows = np.random.default_rng(3).normal(size=(16, 3)).astype(np.float32)
    together = backend.instance().run({"x": rows})["logits"]
    np.testing.assert_allclose(together, rows @ WEIGHTS, rtol=1e-5)
    for index, values in enumerate(rows):
        alone = row(backend, x=values)["logits"]
        np.testing.assert_allclose(alone, together[index], rtol=1e-5)


def test_padding_does_not_change_an_answer(masked_sum: Path) -> None:
    backend = OnnxBackend(masked_sum)
    items = []
    for length in (1, 7, 3):
        ids = np.arange(1, length + 1, dtype=np.int64)
        items.append(Encoded({"input_ids": ids, "attention_mask": np.ones_like(ids)}, length))
    together = backend.instance().run(pad(items, {"input_ids": 99}))["total"]
    assert together.tolist() == [1, 28, 6]
    assert [row(backend, **item.inputs)["total"] for item in items] == together.tolist()


def test_instances_of_several_threads_have_a_session_each_and_agree(linear: Path) -> None:
    backend = OnnxBackend(linear, 2, options=OnnxOptions(intra_op_num_threads=2))
    first, second = backend.instance(), backend.instance()
    assert first._session is not second._session  # type: ignore[attr-defined]  # what is meant
    batch = {"x": np.ones((2, 3), dtype=np.float32)}
    assert first.run(batch)["logits"].tolist() == second.run(batch)["logits"].tolist()


def test_instances_of_one_thread_share_a_session(linear: Path) -> None:
    backend = OnnxBackend(linear, 2, options=OnnxOptions(intra_op_num_threads=1))
    first, second = backend.instance(), backend.instance()
    assert first._session is second._session  # type: ignore[attr-defined]  # what is meant


def test_a_provider_that_is_not_here_is_refused_by_name(linear: Path) -> None:
    wanted = OnnxOptions(providers=("TensorrtExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(InvalidRequest, match="TensorrtExecutionProvider not in this"):
        OnnxBackend(linear, options=wanted)


def test_bound_memory_gives_the_same_answers(linear: Path) -> None:
    session = OnnxBackend(linear).instance()._session  # type: ignore[attr-defined]
    rows = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    bound = BoundInstance(session, "cpu").run({"x": rows})
    assert bound["logits"].tolist() == OnnxInstance(session).run({"x": rows})["logits"].tolist()


def test_the_sessions_options_reach_it(linear: Path) -> None:
    entries = {"session.set_denormal_as_zero": "1"}
    options = OnnxOptions(
        graph_optimization_level="basic", execution_mode="parallel", session_config=entries
    )
    found = OnnxBackend(linear, options=options).instance()._session.get_session_options()  # type: ignore[attr-defined]
    assert found.graph_optimization_level == LEVELS["basic"]
    assert found.execution_mode.name == "ORT_PARALLEL"
    assert found.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert found.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_an_instance_outlives_the_closing_of_its_backend(linear: Path) -> None:
    backend = OnnxBackend(linear)
    instance = backend.instance()
    backend.close()
    assert instance.run({"x": np.zeros((1, 3), dtype=np.float32)})["logits"].tolist() == [[0, 0]]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(Exception, match=r"broken\.onnx"):
        OnnxBackend(path)


def test_wrong_inputs_raise(linear: Path) -> None:
    with pytest.raises(Exception, match="x"):
        OnnxBackend(linear).instance().run({"y": np.zeros((1, 3), dtype=np.float32)})


def test_texts_reach_the_model_as_texts(tmp_path: Path) -> None:
    encoder = helper.make_node(
        "LabelEncoder",
        ["t"],
        ["logits"],
        domain="ai.onnx.ml",
        keys_strings=["good", "bad"],
        values_floats=[1.0, -1.0],
    )
    graph = helper.make_graph(
        [encoder],
        "g",
        [helper.make_tensor_value_info("t", TensorProto.STRING, ["n", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "t.onnx")
    given = {"t": np.array([[b"good"], [b"bad"]], dtype=np.object_)}
    backend = OnnxBackend(tmp_path / "t.onnx")
    backend.device = "cuda:0"  # as if: what has texts is not bound to a device's memory
    assert backend.instance().run(given)["logits"].ravel().tolist() == [1.0, -1.0]
