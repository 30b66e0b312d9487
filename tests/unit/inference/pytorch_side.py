"""What the tests have done by the environment that has torch: one line of JSON, by step.

`python -m tests.unit.inference.pytorch_side FOLDER STEP...` in the repository. Every step is a
function of `Place`; what it returns, or the error that it ends with, is told under its name. Most
need `made` before them, and those about all forms of a model `saved`.
"""

import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.inference import loading
from services.inference.backends.pytorch import PyTorchBackend, PyTorchInstance
from services.inference.backends.pytorch_folder import FolderProgram
from services.inference.backends.pytorch_program import Segments, Tensors
from services.inference.backends.pytorch_unpadded import install
from services.inference.items import Encoded, TextItem, pad
from services.inference.manifest import Manifest
from services.inference.scoring import probabilities
from services.work.transformer import Transformer
from services.work.warm import warm
from tests.unit.inference import pytorch_models as models
from tests.unit.inference import (
    pytorch_side_archives,
    pytorch_side_files,
    pytorch_side_gpu,
    pytorch_side_running,
)
from tests.unit.inference.batches import mixed, only
from tests.unit.inference.pytorch_fakes import Counting
from tests.unit.inference.pytorch_models import with_options
from tests.unit.inference.pytorch_place import LENGTHS, Place, raised, sentences
from tests.unit.registry_worker import torch_side
from tests.unit.registry_worker.folders import built


def made(at: Place) -> Any:
    """A small BERT with a real vocabulary, in a folder."""
    return torch_side.tiny(str(at / "folder"), str(built("sentiment") / "tokenizer.json"))


def saved(at: Place) -> Any:
    """The same model as TorchScript and by torch.export."""
    models.archived(at / "folder", at / "script", at / "export")
    return {}


def signatures(at: Place) -> Any:
    """What each form of one model says of itself."""
    found = {}
    for form in ("folder", "script", "export"):
        backend = PyTorchBackend(at.manifest(form), at / form, instances=2)
        found[form] = {
            "name": backend.name,
            "version": backend.version,
            "device": backend.device,
            "threads": backend.threads,
            "inputs": [(spec.name, spec.datatype, spec.shape) for spec in backend.inputs],
            "outputs": [(spec.name, spec.datatype, spec.shape) for spec in backend.outputs],
        }
    return found | {"torch": torch.__version__}


def architectures(at: Place) -> Any:
    """How far packed answers are from padded ones, and what ran."""
    found = {}
    for name in (*models.ARCHITECTURES, *models.PADDED):
        manifest = models.small(at.new(name), name)
        backend = PyTorchBackend(manifest, at / name)
        program = Counting(backend._program)
        padded = PyTorchBackend(with_options(manifest, unpadded=False), at / name).instance()
        names = [spec.name for spec in backend.inputs]
        fill = program.fill["input_ids"]
        batch = only(mixed(LENGTHS, fill), names)
        wanted = padded.run(batch)["logits"]
        got = PyTorchInstance(program, 1).run(batch)["logits"]
        always = with_options(manifest, unpadded=True)
        found[name] = {
            "unpadded": program.unpadded,
            "calls": program.calls,
            "difference": float(np.abs(got - wanted).max()),
            "spread": float(np.ptp(wanted, axis=0).max()),
            "always": raised(lambda m=always, n=name: PyTorchBackend(m, at / n)),
        }
    return found


def odd_batches(at: Place) -> Any:
    """Batches that cannot or need not be packed, against the padded backend."""
    manifest = at.manifest("folder")
    backend = PyTorchBackend(manifest, at / "folder")
    padded = PyTorchBackend(with_options(manifest, unpadded=False), at / "folder").instance()
    found = {}
    for name, row in (("hole", [1, 0, 1, 0]), ("empty", [0] * 4), ("full", [1] * 4)):
        program = Counting(backend._program)
        batch = mixed([4, 4])
        batch["attention_mask"][1] = row
        got, wanted = PyTorchInstance(program, 1).run(batch), padded.run(batch)
        apart = float(np.abs(got["logits"] - wanted["logits"]).max())
        found[name] = {"calls": program.calls, "difference": apart}
    return found


class Lying(Counting):
    """Gives something else for a packed batch, or nothing."""

    def __init__(self, program: Any, error: float) -> None:
        super().__init__(program)
        self._error = error

    def packed(self, tensors: Tensors, segments: Segments) -> Tensors:
        """Off by so much."""
        if not self._error:
            raise TypeError("no segments here")
        found = super().packed(tensors, segments)
        return {name: values + self._error for name, values in found.items()}


def distrust(at: Place) -> Any:
    """What becomes of a model whose packed answers are wrong."""
    found = {}
    for name, error in (("wrong", 0.01), ("not a number", np.nan), ("raising", 0.0)):
        program = FolderProgram(at.manifest("folder"), at / "folder")
        before = program.model.config._attn_implementation
        said, _ = install(program.model, Lying(program, error), "cpu")
        restored = program.model.config._attn_implementation == before
        hooks = len(program.model.bert.encoder._forward_hooks)
        found[name] = {"said": said, "restored": restored, "hooks": hooks}
    return found


def encoded(manifest: Manifest, folder: Path) -> tuple[loading.Loaded, list[Encoded]]:
    """A model as it is served, and real sentences for it."""
    loaded = loading.load(with_options(manifest, threads=1), folder)
    items = [TextItem(text) for text in sentences()]
    return loaded, [one for one in loaded.preprocessor.encode(items) if isinstance(one, Encoded)]


def scores(loaded: loading.Loaded, items: Sequence[Encoded], size: int) -> Any:
    """The probabilities of each item, in padded batches as they come."""
    rows: list[Any] = []
    for start in range(0, len(items), size):
        batch = pad(items[start : start + size], loaded.preprocessor.fill)
        logits = loaded.instances[0].run(batch)["logits"]
        assert logits.dtype == np.float32
        rows += [probabilities({"logits": row}, multi_label=False).tolist() for row in logits]
    return rows


def real(at: Place) -> Any:
    """all-MiniLM with a head, on real sentences: packed, padded, alone, and in short types."""
    manifest = models.encoder_with_head(at / "encoder", at / "minilm")
    kinds = {
        "packed": manifest,
        "padded": with_options(manifest, unpadded=False),
        "bfloat16": with_options(manifest, dtype="bfloat16"),
        "float16": with_options(manifest, dtype="float16"),
    }
    found: dict[str, Any] = {}
    for name, one in kinds.items():
        loaded, items = encoded(one, at / "minilm")
        for size in {"packed": (8, 32), "padded": (1, 8, 32)}.get(name, (8,)):
            found[f"{name} {size}"] = scores(loaded, items, size)
        backend: Any = loaded.backend
        weights = backend._program.model.parameters()
        found[f"types {name}"] = sorted({str(weight.dtype) for weight in weights})
        loaded.backend.close()
    return found


def onnx(at: Place) -> Any:
    """The same model as ONNX, for the environment that has ONNX Runtime alone."""
    Transformer(at / "minilm").export(at.new("onnx") / "model.onnx", mixed([9, 4]), 256)
    return {}


def forms(at: Place) -> Any:
    """One model in three forms: what it answers, what a bad row does, what the worker says."""
    found: dict[str, Any] = {}
    for form in ("folder", "script", "export"):
        loaded, items = encoded(at.manifest(form), at / form)
        run = loaded.instances[0].run
        good = pad(items[:4], {})
        before = run(good)["logits"]
        bad = {name: rows.copy() for name, rows in good.items()}
        bad["input_ids"][1, 1] = 30522
        alone = {name: rows[1:2] for name, rows in bad.items()}
        found[form] = {
            "scores": scores(loaded, items, 8),
            "bad": [raised(lambda r=run, b=b: r(b)) for b in (bad, alone)],
            "still": bool((run(good)["logits"] == before).all()),
            "warmed": warm(at / form, at.manifest(form)).labels_width,
        }
    return found


STEPS: Mapping[str, Callable[[Place], Any]] = {
    step.__name__: step
    for step in (
        *(made, saved, signatures, architectures, odd_batches, distrust, real, onnx, forms),
        *pytorch_side_running.STEPS,
        *pytorch_side_files.STEPS,
        *pytorch_side_archives.STEPS,
        *pytorch_side_gpu.STEPS,
    )
}


def main(folder: str, *steps: str) -> None:
    """Do the steps, tell."""
    # Threads that wait for each other are slow where cores are shared, as tests' are.
    torch.set_num_threads(1)
    at = Place(Path(folder))
    found = {}
    for name in steps:
        try:
            found[name] = STEPS[name](at)
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
