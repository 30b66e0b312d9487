"""Steps of the PyTorch tests about models that were saved whole. Needs torch."""

from typing import Any

import numpy as np
import torch

from services.inference.backends.pytorch import PyTorchBackend
from services.inference.manifest import Manifest
from tests.unit.inference import pytorch_toys as toys
from tests.unit.inference.pytorch_models import declared, scripted
from tests.unit.inference.pytorch_place import Place, raised

NUMBERS = {"kind": "float_features"}
IMAGE = {"kind": "image", "image": {"width": 5, "height": 4}}
GRAY = {
    "kind": "image",
    "image": {"width": 5, "height": 4, "channels": "grayscale", "layout": "NHWC"},
}
PAIR = [
    {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
    {"name": "b", "datatype": "INT32", "shape": [-1, -1]},
]


def told(backend: PyTorchBackend, **inputs: Any) -> Any:
    """What it says of itself, and what it gives for these inputs."""
    gives = backend.instance().run({name: np.array(rows) for name, rows in inputs.items()})
    return {
        "inputs": [(spec.name, spec.datatype, spec.shape) for spec in backend.inputs],
        "outputs": [(spec.name, spec.datatype, spec.shape) for spec in backend.outputs],
        "gives": {name: [str(rows.dtype), rows.tolist()] for name, rows in gives.items()},
    }


def script(at: Place, name: str, module: Any, **fields: Any) -> PyTorchBackend:
    """A backend over a scripted module."""
    return PyTorchBackend(scripted(at / name, module, **fields), at / name)


def scripts(at: Place) -> Any:
    """TorchScript: where names, types and shapes come from."""
    row = np.array([[1, 2]], np.float32)
    named = {"inputs": PAIR, "outputs": ["logits", "other"]}
    one, other = toys.Doubled().eval(), toys.Lookup().eval()
    numbers = {"kind": "float_features", "names": ["p", "q"]}
    return {
        "numbers": told(script(at, "s1", one, input=NUMBERS), x=row),
        "named numbers": told(script(at, "s2", one, input=numbers), x=row),
        "image": script(at, "s3", one, input=IMAGE).inputs[0].shape,
        "gray": script(at, "s4", one, input=GRAY).inputs[0].shape,
        "by name": told(script(at, "s5", toys.ByName(), input=NUMBERS), x=row),
        "named": told(script(at, "s6", toys.Named(), input=NUMBERS), x=row),
        "pair": told(
            script(at, "s7", toys.Pair(), input={"kind": "tensors"}, pytorch=named),
            a=row,
            b=np.array([[3, 4, 5]], np.int32),
        ),
        "text": [spec.name for spec in script(at, "s8", other).inputs],
        "probabilities": told(
            script(at, "s9", one, input=NUMBERS, pytorch={"outputs": ["probabilities"]}), x=row
        ),
    }


def scripts_refused(at: Place) -> Any:
    """TorchScript that the manifest does not tell enough of, or wrongly."""
    one = toys.Doubled().eval()
    tensors = {"kind": "tensors"}
    wide = [{"name": "x", "datatype": "FP32", "shape": [4, -1]}]
    texts = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}] * 2
    few = {"inputs": PAIR, "outputs": ["logits"]}
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "untold": (one, {"input": tensors}),
        "not tokens": (one, {}),
        "two vectors": (toys.Pair(), {"input": NUMBERS}),
        "one length": (toys.Fixed(), {}),
        "fixed batch": (one, {"input": tensors, "pytorch": {"inputs": wide}}),
        "too many": (one, {"input": tensors, "pytorch": {"inputs": texts}}),
        "outputs": (toys.Pair(), {"input": tensors, "pytorch": few}),
        "type": (one, {"input": NUMBERS, "pytorch": {"dtype": "bfloat16"}}),
        "unpadded": (one, {"input": NUMBERS, "pytorch": {"unpadded": True}}),
    }
    return {
        name: raised(lambda n=name, m=module, f=fields: script(at, f"r {n}", m, **f))
        for name, (module, fields) in cases.items()
    }


def exported(
    at: Place, name: str, module: Any, given: Any, dynamic: Any, **fields: Any
) -> Manifest:
    """A module by torch.export."""
    positional, keywords = given
    made = torch.export.export(module, positional, keywords, dynamic_shapes=dynamic)
    torch.export.save(made, at.new(name) / "model.pt2")
    return declared(at / name, {"model": "model.pt2"}, input={"kind": "tensors"}, **fields)


def exports(at: Place) -> Any:
    """torch.export: what the file tells, and what it cannot do."""
    batch = torch.export.Dim("batch", min=1, max=64)
    rows = torch.ones(2, 3)
    both = exported(
        *(at, "e1", toys.Keywords(), ((rows,), {"y": -rows}), {"x": {0: batch}, "y": {0: batch}})
    )
    named = {"inputs": [{"name": "mine", "datatype": "FP32", "shape": [-1, 3]}]}
    one = exported(
        *(at, "e2", toys.Doubled(), ((rows,), {}), {"x": {0: batch}}),
        pytorch={**named, "outputs": ["probabilities"]},
    )
    fixed = exported(at, "e3", toys.Doubled(), ((rows,), {}), None)
    many = exported(at, "e4", toys.Doubled(), ((rows,), {}), {"x": {0: batch}})
    many = many.model_copy(
        update={"pytorch": many.pytorch.model_copy(update={"inputs": one.pytorch.inputs * 2})}
    )
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "keywords": told(PyTorchBackend(both, at / "e1"), x=values, y=values / 2),
        "renamed": told(PyTorchBackend(one, at / "e2"), mine=values),
        "too large": raised(
            lambda: PyTorchBackend(one, at / "e2").instance().run({"mine": np.ones((65, 3), "f4")})
        ),
        "fixed": raised(lambda: PyTorchBackend(fixed, at / "e3")),
        "many": raised(lambda: PyTorchBackend(many, at / "e4")),
    }


STEPS = (scripts, scripts_refused, exports)
