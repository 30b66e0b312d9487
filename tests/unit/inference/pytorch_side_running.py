"""Steps of the PyTorch tests about instances that run, at once or no more. Needs torch."""

import threading
import warnings
import weakref
from typing import Any

import torch

from services.inference.backends.pytorch import PyTorchBackend
from tests.unit.inference.batches import mixed
from tests.unit.inference.pytorch_models import with_options
from tests.unit.inference.pytorch_place import LENGTHS, Place, raised


def closing(at: Place) -> Any:
    """Whether the weights are gone while the instances are not."""
    found = {}
    for form in ("folder", "script", "export"):
        backend = PyTorchBackend(at.manifest(form), at / form, instances=2)
        kept = [backend.instance(), backend.instance()]
        batch = mixed(LENGTHS)
        for instance in kept:
            instance.run(batch)
        program: Any = backend._program
        # TorchScript hands out another Python object for its weights at every call.
        weights = program.model if form == "folder" else program._module
        seen = weakref.ref(weights if form == "script" else next(weights.parameters()))
        del program, weights
        backend.close()
        backend.close()
        said = [raised(lambda i=instance, b=batch: i.run(b)) for instance in kept]
        found[form] = {"gone": seen() is None, "run": said, "more": raised(backend.instance)}
    return found


def threads(at: Place) -> Any:
    """How many threads each instance computes on, in threads of their own and in a shared one."""
    manifest = at.manifest("folder")
    counted = [PyTorchBackend(with_options(manifest, threads=n), at / "folder") for n in (1, 3)]
    instances = [backend.instance() for backend in counted]
    batch, found = mixed(LENGTHS), {"given": [backend.threads for backend in counted]}
    together = threading.Barrier(2)

    def computing(index: int, into: list[int]) -> None:
        instances[index].run(batch)
        together.wait(timeout=60)
        instances[index].run(batch)
        into[index] = torch.get_num_threads()

    apart = [0, 0]
    running = [threading.Thread(target=computing, args=(i, apart)) for i in (0, 1)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    in_turn = []
    for index in (0, 1, 0):
        instances[index].run(batch)
        in_turn.append(torch.get_num_threads())
    shared = [PyTorchBackend(manifest, at / "folder", instances=n).threads for n in (1, 64)]
    return found | {"apart": apart, "in_turn": in_turn, "shared": shared}


def at_once(at: Place) -> Any:
    """Two instances in two threads, and inputs that may not be written to."""
    backend = PyTorchBackend(with_options(at.manifest("folder"), threads=1), at / "folder", 2)
    batches = [mixed(LENGTHS), mixed([9] * 4)]
    for rows in (rows for batch in batches for rows in batch.values()):
        rows.setflags(write=False)
    instances = [backend.instance() for _ in batches]
    with warnings.catch_warnings():
        # PyTorch warns of memory that it must not write to.
        warnings.simplefilter("error")
        wanted = [one.run(batch) for one, batch in zip(instances, batches, strict=True)]
    wrong: list[int] = []

    def again(index: int) -> None:
        for _ in range(50):
            if (instances[index].run(batches[index])["logits"] != wanted[index]["logits"]).any():
                wrong.append(index)

    running = [threading.Thread(target=again, args=(index,)) for index in (0, 1)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return {"wrong": wrong}


STEPS = (closing, threads, at_once)
