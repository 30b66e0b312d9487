"""Steps of the PyTorch tests about a GPU, on one that is this CPU. Needs torch."""

import weakref
from typing import Any

import numpy as np
import torch

from services.inference.backends.pytorch import PyTorchBackend
from services.inference.backends.pytorch_folder import FolderProgram
from services.inference.backends.pytorch_gpu import GpuInstance, Mover
from services.inference.backends.pytorch_program import Segments
from services.inference.backends.pytorch_shapes import Sizes
from services.inference.backends.pytorch_unpadded import _by_kernel
from services.inference.manifest import Input, Manifest
from tests.unit.inference import pytorch_toys as toys
from tests.unit.inference.batches import mixed
from tests.unit.inference.pytorch_fakes import Counting, FakeGpu
from tests.unit.inference.pytorch_models import scripted
from tests.unit.inference.pytorch_place import Place, raised

BATCHES = [[5], [9, 3, 17], [7, 2], [17, 3, 9], [30, 30, 30, 30, 1], [3], [40, 2], [33, 1, 50]]


def changed(manifest: Manifest, **options: Any) -> Manifest:
    """The manifest with some of PyTorch's options changed, and at most 128 tokens and 6 rows."""
    return manifest.model_copy(
        update={
            "pytorch": manifest.pytorch.model_copy(update=options),
            "batching": manifest.batching.model_copy(update={"max_batch_size": 6}),
        }
    )


def answers(instance: Any, batches: Any = BATCHES) -> list[Any]:
    """What it gives for batches of these lengths."""
    return [instance.run(mixed(lengths, seed=n))["logits"] for n, lengths in enumerate(batches)]


def apart(one: list[Any], other: list[Any]) -> float:
    """How far answers are from others; no number at all is as far as can be."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def cpu_answers(at: Place) -> list[Any]:
    """Those to agree with."""
    padded = changed(at.manifest("folder"), unpadded=False)
    return answers(PyTorchBackend(padded, at / "folder", device="cpu").instance())


def gpu_padded(at: Place) -> Any:
    """Graphs by size, with and without; and where they cannot be captured."""
    wanted, found = cpu_answers(at), {}
    for name, options, fails in (
        ("graphs", {"length_buckets": (16, 32, 64)}, False),
        ("few", {"length_buckets": (16, 32, 64), "max_cuda_graphs": 2}, False),
        ("none", {"cuda_graphs": False}, False),
        ("failing", {}, True),
    ):
        gpu = FakeGpu(capture_fails=fails)
        manifest = changed(at.manifest("folder"), **options)
        backend = PyTorchBackend(manifest, at / "folder", gpu=gpu)
        got = answers(backend.instance())
        found[name] = {
            "device": backend.device,
            "difference": apart(got, wanted),
            "rows": [len(rows) for rows in got],
            "captured": [shape["input_ids"] for shape in gpu.captured],
            "replays": gpu.replays,
            "slots": gpu.slots,
        }
    return found


def gpu_packed(at: Place) -> Any:
    """Packed batches, in sizes of their own and in those of graphs."""
    program = FolderProgram(changed(at.manifest("folder")), at / "folder")
    program.leave_out_padding(wanted=True, device="cpu")
    wanted, found = cpu_answers(at), {}
    for name, sizes in (("graphs", Sizes.of(6, (), (16, 32, 64), 128)), ("none", Sizes())):
        gpu, counting = FakeGpu(), Counting(program)
        mover = Mover(gpu, counting, sizes, 128)
        got = answers(GpuInstance(gpu, counting, mover, 64 if sizes.rows else 0))
        found[name] = {
            "difference": apart(got, wanted),
            "calls": counting.calls,
            "captured": [
                next(iter(shape.values())) + shape.get("starts", []) for shape in gpu.captured
            ],
        }
    return found


def gpu_prepared(at: Place) -> Any:
    """Batches that are sent before they run, in another order and on another instance."""
    gpu = FakeGpu()
    backend = PyTorchBackend(changed(at.manifest("folder")), at / "folder", 2, gpu=gpu)
    one, other = backend.instance(), backend.instance()
    wanted = cpu_answers(at)
    batches = [mixed(lengths, seed=n) for n, lengths in enumerate(BATCHES)]
    first, second, _dropped = (one.prepare(batch) for batch in batches[:3])
    inputs = all((first[name] == rows).all() for name, rows in batches[0].items())
    got = [other.run(second), one.run(first), one.run(first), other.run(batches[3])]
    order = [wanted[n] for n in (1, 0, 0, 3)]
    return {
        "difference": apart([outputs["logits"] for outputs in got], order),
        "inputs": inputs,
        "slots": gpu.slots,
    }


def gpu_refused(at: Place) -> Any:
    """What must not reach a GPU, and that it goes on after."""
    manifest = changed(at.manifest("folder"))
    instance = PyTorchBackend(manifest, at / "folder", gpu=FakeGpu()).instance()
    before = answers(instance)
    bad = {name: mixed([5, 3]) for name in ("large", "negative", "type", "long")}
    bad["large"]["input_ids"][1, 0] = 30522
    bad["negative"]["input_ids"][1, 0] = -1
    bad["type"]["token_type_ids"][0, 0] = 2
    bad["long"] = mixed([129])
    said = {name: raised(lambda b=batch: instance.run(b)) for name, batch in bad.items()}
    said["prepared"] = raised(lambda: instance.prepare(bad["large"]))
    said["after"] = str(apart(answers(instance), before))
    declared = Input(kind="text", max_tokens=161)
    longer = manifest.model_copy(update={"input": declared})
    said["positions"] = raised(lambda: PyTorchBackend(longer, at / "folder", gpu=FakeGpu()))
    always = changed(manifest, unpadded=True)
    said["unpadded"] = raised(lambda: PyTorchBackend(always, at / "folder", gpu=FakeGpu()))
    short = changed(at.manifest("script"))
    said["bounds"] = raised(lambda: PyTorchBackend(short, at / "script", gpu=FakeGpu()))
    said["absent"] = raised(lambda: PyTorchBackend(manifest, at / "folder", device="cuda:7"))
    said["no device"] = raised(lambda: PyTorchBackend(manifest, at / "folder", device="tpu"))
    return said


def gpu_archives(at: Place) -> Any:
    """Archives, with what their tables lack and without tokens."""
    bounds = {"input_ids": 30522, "token_type_ids": 0}
    found: dict[str, Any] = {}
    for form in ("script", "export"):
        gpu = FakeGpu()
        backend = PyTorchBackend(changed(at.manifest(form), bounds=bounds), at / form, gpu=gpu)
        instance = backend.instance()
        batch = mixed([5, 3])
        batch["input_ids"][1, 0] = 30522
        found[form] = {
            "difference": apart(answers(instance), cpu_answers(at)),
            "bad": raised(lambda i=instance, b=batch: i.run(b)),
        }
    manifest = scripted(at / "numbers", toys.Doubled(), input={"kind": "float_features"})
    gpu = FakeGpu()
    instance = PyTorchBackend(manifest, at / "numbers", gpu=gpu).instance()
    given = [instance.run({"x": np.full((rows, 2), rows, np.float32)}) for rows in (3, 4, 5)]
    found["numbers"] = [rows["logits"].tolist() for rows in given]
    found["captured"] = [shape["x"] for shape in gpu.captured]
    return found


def gpu_kernel(at: Place) -> Any:
    """The attention of a GPU, called with tensors that have shapes and no values."""

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    segments = Segments(empty(4, dtype=torch.int32), empty(3, dtype=torch.int64), 5)
    found = _by_kernel(*(empty(1, 2, 10, 16) for _ in range(3)), 0.25, segments)
    return {"shape": list(found.shape), "type": str(found.dtype)}


def gpu_closing(at: Place) -> Any:
    """Nothing is left, though instances and prepared batches are still held."""
    gpu = FakeGpu()
    backend = PyTorchBackend(changed(at.manifest("folder")), at / "folder", gpu=gpu)
    instance = backend.instance()
    prepared = instance.prepare(mixed([5]))
    answers(instance)
    program: Any = backend._program
    seen = weakref.ref(next(program.model.parameters()))
    del program
    backend.close()
    backend.close()
    said = [raised(lambda: instance.run(prepared)), raised(lambda: instance.run(mixed([5])))]
    return {"gone": seen() is None, "closed": gpu.closed, "run": said}


STEPS = (gpu_padded, gpu_packed, gpu_prepared, gpu_refused, gpu_archives, gpu_kernel, gpu_closing)
