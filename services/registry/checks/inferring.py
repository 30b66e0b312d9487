"""The manifest that a version's files imply where it brings none, or what it must be told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from services.inference.manifest import FILE_NAME, SCHEMA, Manifest
from services.registry.checks import configs, gguf, onnx_model
from services.registry.checks.contents import Torch
from services.registry.checks.files import Files, plain
from services.registry.checks.findings import RefusedError, quoted
from services.registry.resources import TensorRecord

RULE = "manifest-needed"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
DEFAULT_TOKENS, MAX_TOKENS, MAX_CONTEXT = 512, 1 << 20, 131_072
MAX_LABELS, MAX_FEATURES = 100_000, 100_000
TOKENIZED = {"input_ids", "attention_mask", "token_type_ids"}
CLASSIFIER, GENERATOR = "ForSequenceClassification", "ForCausalLM"

Draft = dict[str, Any]


@dataclass(slots=True)
class Found:
    """What the checks of single files learned."""

    onnx: dict[str, onnx_model.Header] = field(default_factory=dict)
    ggufs: dict[str, gguf.Header] = field(default_factory=dict)
    safetensors: list[str] = field(default_factory=list)
    torch: dict[str, Torch] = field(default_factory=dict)


def infer(files: Files, found: Found, model: str) -> tuple[str, Draft, Manifest]:
    """The file that it is about; what the manifest says of itself; and all of it."""
    path, draft = _family(files, found)
    said: Draft = {"schema": SCHEMA, "name": model, **draft}
    for name in said["files"].values():
        if "/" in name:
            raise _needed(f"{quoted(name)} lies in a folder; add it beside {FILE_NAME} instead")
    try:
        return path, said, Manifest.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _needed(f"{where}: {first['msg']}") from error


def _family(files: Files, found: Found) -> tuple[str, Draft]:
    """Which kind of model this is: the files must speak for exactly one."""
    scripts = {p: kind for p, kind in found.torch.items() if kind is not Torch.WEIGHTS}
    families: list[tuple[list[str], Callable[[Files, Found, str], Draft]]] = [
        (sorted(found.onnx), _onnx),
        (sorted(found.ggufs), _gguf),
        (sorted(found.safetensors), _folder),
        (sorted(scripts), _torch),
    ]
    present = [(paths, build) for paths, build in families if paths]
    if not present:
        said = "no ONNX, GGUF or safetensors file is there to tell what the model is"
        raise _needed(said)
    (paths, build), *others = present
    if others or (len(paths) > 1 and build is not _folder):
        named = ", ".join(quoted(p) for group, _ in present for p in group[:3])
        raise _needed(f"any of {named} could be the model; name one in files.model")
    return paths[0], build(files, found, paths[0])


def _onnx(files: Files, found: Found, path: str) -> Draft:
    header, config = found.onnx[path], configs.read(files, CONFIG)
    names = {tensor.name for tensor in header.inputs} | set(header.others)
    draft: Draft = {"task": "classification", "backend": "onnxruntime", "files": {"model": path}}
    if "input_ids" in names and names <= TOKENIZED:
        draft["files"]["tokenizer"] = _tokenizer(files)
        draft["input"] = {"kind": "text", "max_tokens": _max_tokens(files, config)}
    elif (width := _features(header)) is not None:
        draft["input"] = {"kind": "float_features", "names": _feature_names(config, width)}
    else:
        takes = ", ".join([_described(tensor) for tensor in header.inputs] + header.others)
        raise _needed(f"add {FILE_NAME} with input.kind: the model takes {takes or 'nothing'}")
    return {**draft, **_output(config)}


def _gguf(files: Files, found: Found, path: str) -> Draft:
    header = found.ggufs[path]
    length = header.number(f"{header.text('general.architecture')}.context_length")
    if length < 1:
        raise _needed(f"add {FILE_NAME} with limits.max_context_tokens: {quoted(path)} has none")
    return {
        "task": "generation",
        "engine": "openvino-genai",
        "files": {"model": path},
        "limits": {"max_context_tokens": min(length, MAX_CONTEXT)},
    }


def _folder(files: Files, found: Found, _: str) -> Draft:
    """A folder as Hugging Face's libraries write it."""
    config = configs.read(files, CONFIG)
    architectures = config.get("architectures")
    names = (
        [a for a in architectures if isinstance(a, str)] if isinstance(architectures, list) else []
    )
    named: Draft = {"model": _weights(files, found), "config": CONFIG}
    if any(name.endswith(CLASSIFIER) for name in names):
        named["tokenizer"] = _tokenizer(files)
        taken = {"kind": "text", "max_tokens": _max_tokens(files, config)}
        draft: Draft = {"task": "classification", "backend": "pytorch", "files": named}
        return {**draft, "input": taken, **_output(config)}
    if any(name.endswith(GENERATOR) for name in names):
        length = _sane(_text_config(config).get("max_position_embeddings"), MAX_TOKENS)
        if length is None:
            raise _needed(f"add {FILE_NAME} with limits.max_context_tokens: {CONFIG} has none")
        limits = {"max_context_tokens": min(length, MAX_CONTEXT)}
        if TOKENIZER in files.paths:
            named["tokenizer"] = TOKENIZER
        return {"task": "generation", "engine": "vllm", "files": named, "limits": limits}
    said = f"{CONFIG} names no architecture that ends in {CLASSIFIER} or {GENERATOR}"
    raise _needed(f"add {FILE_NAME} with task and backend or engine: {said}")


def _torch(files: Files, found: Found, path: str) -> Draft:
    said = f"{quoted(path)} is a {found.torch[path]} archive, which does not tell what it takes"
    raise _needed(f"add {FILE_NAME} with backend: pytorch and input.kind: {said}")


def _weights(files: Files, found: Found) -> str:
    """The file that stands for all weights."""
    if INDEX in files.paths:
        return INDEX
    if WEIGHTS in files.paths or len(found.safetensors) > 1:
        if WEIGHTS not in files.paths:
            raise _needed(f"there are several safetensors files and no {INDEX}; add it")
        return WEIGHTS
    return found.safetensors[0]


def check_index(files: Files, path: str) -> None:
    """Refuse an index whose shards are not all among the version's files."""
    weights = configs.read(files, path).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(s, str) for s in weights.values()):
        raise RefusedError("header", "weight_map must map each tensor to a file")
    for shard in sorted(set(weights.values())):
        if not plain(shard) or files.beside(path, shard) is None:
            raise RefusedError("file-missing", f"its shard {quoted(shard)} is not an artifact")


def _tokenizer(files: Files) -> str:
    if TOKENIZER not in files.paths:
        raise _needed(f"the model takes text as token ids; add {TOKENIZER}")
    return TOKENIZER


def _max_tokens(files: Files, config: Mapping[str, Any]) -> int:
    """The shorter of what the model and its tokenizer say; the latter may say 1e30 for none."""
    given = configs.read(files, configs.TOKENIZER_CONFIG).get("model_max_length")
    said = [_sane(config.get("max_position_embeddings"), MAX_TOKENS), _sane(given, MAX_TOKENS)]
    return min((length for length in said if length is not None), default=DEFAULT_TOKENS)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Models that also see keep the language model's settings one level down."""
    inner = config.get("text_config")
    return config if "max_position_embeddings" in config or not isinstance(inner, dict) else inner


def _sane(value: Any, most: int) -> int | None:
    return value if type(value) is int and 1 <= value <= most else None


def _features(header: onnx_model.Header) -> int | None:
    """How many numbers it takes, where it takes vectors of them and nothing else."""
    if len(header.inputs) != 1 or header.others:
        return None
    shape = header.inputs[0].shape
    fits = header.inputs[0].datatype == "FP32" and len(shape) == 2
    return shape[1] if fits and 1 <= shape[1] <= MAX_FEATURES else None


def _feature_names(config: Mapping[str, Any], width: int) -> list[str]:
    given = config.get("feature_names")
    if given is None:
        return [f"f{index}" for index in range(width)]
    if not _texts(given) or len(given) != width:
        raise _needed(f"feature_names in {CONFIG} must be {width} texts, as the model takes")
    return list(given)


def _output(config: Mapping[str, Any]) -> Draft:
    multi = config.get("problem_type") == "multi_label_classification"
    labels = _labels(config.get("id2label"))
    return {"output": {"labels": labels, "multi_label": multi}} if labels or multi else {}


def _labels(given: Any) -> list[str]:
    """By index: all of them, or an error."""
    if given is None:
        return []
    if isinstance(given, dict) and len(given) <= MAX_LABELS:
        labels = [given.get(str(index)) for index in range(len(given))]
        if _texts(labels):
            return [str(label) for label in labels]
    raise _needed(f"id2label in {CONFIG} must name every index from 0 once")


def _texts(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(text, str) for text in given)


def _described(tensor: TensorRecord) -> str:
    shape = ", ".join("?" if length < 0 else str(length) for length in tensor.shape)
    return f"{quoted(tensor.name, 40)} ({tensor.datatype} [{shape}])"


def _needed(said: str) -> RefusedError:
    return RefusedError(RULE, said if FILE_NAME in said else f"add {FILE_NAME}: {said}")
