"""Steps of the PyTorch tests about the files of a folder. Needs torch."""

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from services.inference.backends.pytorch import PyTorchBackend
from services.inference.backends.pytorch_folder import cast
from tests.unit.inference import pytorch_models as models
from tests.unit.inference.batches import mixed
from tests.unit.inference.pytorch_place import Place, raised

FILES = {"config": "its-config.json"}


def names(at: Place) -> Any:
    """Weights and configuration under names of their own, in one file and in several."""
    manifest = at.manifest("folder")
    batch = mixed([9, 3])
    wanted = PyTorchBackend(manifest, at / "folder").instance().run(batch)["logits"].tolist()
    renamed, sharded = at.new("renamed"), at.new("sharded")
    for folder in (renamed, sharded):
        shutil.copyfile(at / "folder" / "config.json", folder / "its-config.json")
    shutil.copyfile(at / "folder" / "model.safetensors", renamed / "weights.safetensors")
    index = shards(at / "folder" / "model.safetensors", sharded)
    said = {}
    for folder, model in ((renamed, "weights.safetensors"), (sharded, index)):
        declared = models.declared(folder, {"model": model, **FILES})
        found = PyTorchBackend(declared, folder).instance().run(batch)["logits"].tolist()
        said[folder.name] = found == wanted
    return said


def shards(weights: Path, folder: Path) -> str:
    """The weights in two files and an index."""
    tensors = sorted(safetensors.torch.load_file(weights).items())
    where = {}
    for number, part in enumerate((dict(tensors[::2]), dict(tensors[1::2]))):
        name = f"part-{number}.safetensors"
        safetensors.torch.save_file(part, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    said = {"metadata": {}, "weight_map": where}
    (folder / "all.safetensors.index.json").write_text(json.dumps(said))
    return "all.safetensors.index.json"


def refused(at: Place) -> Any:
    """Folders that are no model, or not as the manifest says."""
    found = {}
    for name, spoil in {
        "outside": lambda f: _index(f, "../folder/model.safetensors"),
        "missing shard": lambda f: _index(f, "not-there.safetensors"),
        "missing weights": _without_head,
        "no configuration": lambda f: (f / "config.json").write_text("[]"),
        "odd configuration": lambda f: models.config_of(f, num_attention_heads="many"),
        "odd index": lambda f: _index(f, "", []),
        "no JSON": lambda f: (f / "config.json").write_text("{"),
        "unknown kind": lambda f: models.config_of(f, model_type="unheard-of"),
        "no weights": lambda f: (f / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}"),
        "other ending": lambda f: (f / "model.safetensors").rename(f / "model.bin"),
    }.items():
        folder = at.new(name)
        models.small(folder, "Bert")
        files = spoil(folder)
        if name == "other ending":
            files = {"model": "model.bin"}
        manifest = models.declared(folder, files if isinstance(files, dict) else models.FOLDER)
        found[name] = raised(lambda m=manifest, f=folder: PyTorchBackend(m, f))
    return found


def _index(folder: Path, shard: str, said: Any = None) -> dict[str, str]:
    if said is None:
        said = {"metadata": {}, "weight_map": {"bert.pooler.dense.bias": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(said))
    return {"model": "model.safetensors.index.json", "config": "config.json"}


def _without_head(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    kept = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
    safetensors.torch.save_file(kept, weights, metadata={"format": "pt"})


def harmless(at: Place) -> Any:
    """Configurations that would fetch code, or change what the model gives."""
    batch, found = mixed([9, 3]), {}
    models.small(at.new("plain"), "Bert")
    plain = PyTorchBackend(at.manifest("plain"), at / "plain").instance().run(batch)["logits"]
    for name, change in {
        "kernel": {"attn_implementation": "someone/kernel"},
        "internal": {"_attn_implementation": "someone/kernel"},
        "code": {"auto_map": {"AutoModelForSequenceClassification": "model.Model"}},
        "outputs": {"output_attentions": True, "output_hidden_states": True},
        "tuple": {"return_dict": False},
    }.items():
        manifest = models.small(at.new(name), "Bert")
        models.config_of(at / name, **change)
        given = PyTorchBackend(manifest, at / name).instance().run(batch)["logits"]
        found[name] = bool((given == plain).all())
    return found


class Parts(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """Every kind of thing that a model holds."""

    _keep_in_fp32_modules = ("half_only",)
    _keep_in_fp32_modules_strict = ("exact",)

    def __init__(self) -> None:
        super().__init__()
        for name in ("plain", "exact", "half_only"):
            setattr(self, name, torch.nn.Linear(1, 1))
        self.register_buffer("stored", torch.ones(1))
        self.register_buffer("computed", torch.ones(1), persistent=False)
        self.register_buffer("counted", torch.ones(1, dtype=torch.int64))


def types(at: Place) -> Any:
    """What a short type changes."""
    found = {}
    for name in ("float32", "bfloat16", "float16"):
        parts = Parts()
        cast(parts, name)
        held = {**dict(parts.named_parameters()), **dict(parts.named_buffers())}
        found[name] = sorted(key for key, value in held.items() if value.dtype.itemsize == 2)
    found["default"] = str(torch.get_default_dtype())
    return found


STEPS = (names, refused, harmless, types)
