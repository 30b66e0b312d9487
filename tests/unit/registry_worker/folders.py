"""Model folders for the worker's tests: the built ones, and small ones made here."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from services.inference.manifest import FILE_NAME, SCHEMA

REPOSITORY = Path(__file__).parents[3]
LABELS = ("a", "b", "c")


def built(model: str) -> Path:
    """A model that `python -m models build` made."""
    root = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
    folder = root / "models" / model
    assert (folder / FILE_NAME).is_file(), f"{folder} is not there: run `make models` first"
    return folder


def linear(folder: Path, weights: Any, gives: str = "logits", **manifest: Any) -> Path:
    """A folder whose model gives `features @ weights`, any number of rows at once."""
    folder.mkdir(parents=True, exist_ok=True)
    matrix = np.asarray(weights, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weights"], [gives])],
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", matrix.shape[0]])],
        [helper.make_tensor_value_info(gives, TensorProto.FLOAT, ["n", matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    declare(folder, **manifest)
    return folder


def two_tensors(folder: Path, **manifest: Any) -> Path:
    """A folder whose model gives the mean over each column of a table, times a weight."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["table"], ["means"], axes=[1], keepdims=0),
            helper.make_node("Mul", ["means", "weight"], ["logits"]),
        ],
        "two_tensors",
        [
            helper.make_tensor_value_info("table", TensorProto.FLOAT, ["n", "rows", 3]),
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, ["n", 1]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    declare(folder, **{"input": {"kind": "tensors"}, **manifest})
    return folder


def declare(folder: Path, **fields: Any) -> None:
    """Write `model.yaml`; a vector model of three labels unless told otherwise."""
    least = {
        "schema": SCHEMA,
        "name": "m",
        "task": "classification",
        "backend": "onnxruntime",
        "files": {"model": "model.onnx"},
        "input": {"kind": "float_features"},
        "output": {"labels": list(LABELS)},
    }
    (folder / FILE_NAME).write_text(yaml.safe_dump(least | fields))


def lines(path: Path, *values: Any) -> Path:
    """A file of JSON lines; what is text already stands as it is."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


class Heard(list[tuple[float, str]]):
    """What was told of the progress."""

    def __call__(self, fraction: float, what: str) -> None:
        """One report."""
        self.append((fraction, what))
