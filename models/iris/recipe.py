"""What the iris model is and how its graph is written; knows neither the data set nor fitting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from models.recipe import SCHEMA, Manifest, Recipe

if TYPE_CHECKING:
    from onnx import ModelProto

HEAD_PATH = Path(__file__).with_name("head.json")
FEATURES = ("sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm")
LABELS = ("setosa", "versicolor", "virginica")
OPSET = 17
IR_VERSION = 10


def assemble(inputs: Path, folder: Path) -> Manifest:
    # Imported here so that a build with nothing to do does not wait for onnx.
    import onnx

    head = json.loads(HEAD_PATH.read_text(encoding="utf-8"))
    onnx.save(linear_classifier(head["weights"], head["bias"]), folder / "model.onnx")
    return _manifest(head["metrics"])


def linear_classifier(weights: list[list[float]], bias: list[float]) -> ModelProto:
    """`features` [batch, f] -> `logits` = features @ weights + bias, and their softmax."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes = [
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {"weights": np.array(weights, np.float32), "bias": np.array(bias, np.float32)}
    graph = helper.make_graph(
        nodes,
        "linear_classifier",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(weights)])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(bias)])
            for name in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    checker.check_model(model, full_check=True)
    return model


def _manifest(metrics: dict[str, float]) -> Manifest:
    return {
        "schema": SCHEMA,
        "name": "iris",
        "task": "classification",
        "description": "Species of an iris flower from four measurements",
        "license": "Apache-2.0",
        "backend": "onnxruntime",
        "files": {"model": "model.onnx"},
        "input": {"kind": "float_features", "names": list(FEATURES)},
        "output": {"labels": list(LABELS), "multi_label": False},
        "batching": {"max_batch_size": 256, "instances": 1},
        "metrics": metrics,
        "lineage": {
            "head": "models/iris/head.json",
            "labelled_data": "sklearn.datasets.load_iris (Fisher 1936)",
        },
        "notes": "Multinomial logistic regression; metrics are on flowers held out by hash.",
    }


RECIPE = Recipe(
    name="iris",
    summary="4 float features -> setosa, versicolor, virginica (logistic regression)",
    home=Path(__file__).parent,
    ingredients=(),
    assemble=assemble,
)
