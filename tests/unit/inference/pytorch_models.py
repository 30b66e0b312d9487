"""Small PyTorch models in all their forms, for the tests of the backend. Needs torch."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from services.inference.backends.pytorch_folder import Logits, load
from services.inference.manifest import FILE_NAME, SCHEMA, Manifest
from tests.unit.inference.batches import mixed

FOLDER = {"model": "model.safetensors", "config": "config.json"}
SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "num_labels": 3,
    "initializer_range": 0.2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 16},
    "Bert": {},
    "Camembert": {},
    "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "Electra": {"embedding_size": 16},
    "Roberta": {},
    "XLMRoberta": {},
}
PADDED: dict[str, dict[str, Any]] = {
    "DebertaV2": {"position_buckets": 8, "relative_attention": True, "pos_att_type": ["c2p"]},
    "MPNet": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80, "pad_token_id": 0},
}


def declared(folder: Path, files: dict[str, str], **fields: Any) -> Manifest:
    """A manifest, written where it belongs too."""
    said = {
        "schema": SCHEMA,
        "name": "m",
        "task": "classification",
        "backend": "pytorch",
        "files": files,
        "input": {"kind": "text", "max_tokens": 64},
    }
    (folder / FILE_NAME).write_text(yaml.safe_dump(said | fields))
    return Manifest.read(folder)


def with_options(manifest: Manifest, **options: Any) -> Manifest:
    """The manifest with some of PyTorch's options changed."""
    changed = manifest.pytorch.model_copy(update=options)
    return manifest.model_copy(update={"pytorch": changed})


def small(folder: Path, name: str, **config: Any) -> Manifest:
    """An architecture of Hugging Face's with random weights that differ enough to be told apart."""
    torch.manual_seed(1)
    own = (ARCHITECTURES | PADDED).get(name, {})
    made = getattr(transformers, f"{name}Config")(**(SMALL | own | config))
    model = getattr(transformers, f"{name}ForSequenceClassification")(made)
    for parameter in model.parameters():
        # Biases too, which would start as 0, and a pooler's tanh that is not saturated.
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return declared(folder, FOLDER)


def archived(source: Path, script: Path, exported: Path) -> None:
    """The model of a folder as TorchScript and by torch.export, any batch of any length."""
    module = Logits(load(Manifest.read(source), source)).eval()
    example = tuple(torch.from_numpy(one) for one in mixed([9, 4]).values())
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=128)
    names = ("input_ids", "attention_mask", "token_type_ids")
    shapes = {name: {0: batch, 1: length} for name in names}
    script.mkdir()
    exported.mkdir()
    with warnings.catch_warnings():
        # Both warn of their own parts.
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, example), script / "model.pt")
        torch.export.save(
            torch.export.export(module, example, dynamic_shapes=shapes), exported / "model.pt2"
        )
    for folder, name in ((script, "model.pt"), (exported, "model.pt2")):
        (folder / "tokenizer.json").symlink_to(source / "tokenizer.json")
        files = {"model": name, "tokenizer": "tokenizer.json"}
        declared(folder, files, input={"kind": "text", "max_tokens": 128})


def encoder_with_head(encoder: Path, folder: Path) -> Manifest:
    """A real encoder, with a classifier of two labels that is not sure of everything."""
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        encoder, num_labels=2, local_files_only=True
    )
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").symlink_to(encoder / "tokenizer.json")
    files = {**FOLDER, "tokenizer": "tokenizer.json"}
    return declared(folder, files, input={"kind": "text", "max_tokens": 256})


def scripted(folder: Path, module: Any, **fields: Any) -> Manifest:
    """A module as TorchScript."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), folder / "model.pt")
    return declared(folder, {"model": "model.pt"}, **fields)


def config_of(folder: Path, **changes: Any) -> None:
    """Change the configuration of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
