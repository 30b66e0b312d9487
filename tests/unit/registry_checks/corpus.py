"""Small model files, good and evil, made by hand. Knows the formats, and nothing of the checks."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

Files = Mapping[str, bytes]

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "max_position_embeddings": 128}
GENERATOR = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}


def write(folder: Path, files: Files) -> list[str]:
    """Put the files into the folder; their paths."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return list(files)


def as_json(value: Any) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


def safetensors(header: Any = None, data: bytes = bytes(8)) -> bytes:
    """A file of this header, by default with one tensor."""
    text = (
        header if isinstance(header, bytes) else as_json({"a": F32} if header is None else header)
    )
    return struct.pack("<Q", len(text)) + text + data


def gguf_text(text: str | bytes) -> bytes:
    """A counted text."""
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(encoded)) + encoded


def entry(key: str, kind: int, value: bytes) -> bytes:
    """One entry of metadata."""
    return gguf_text(key) + struct.pack("<I", kind) + value


def text_entry(key: str, text: str) -> bytes:
    """One entry that is a text."""
    return entry(key, 8, gguf_text(text))


def tensor(name: str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """What is said of one tensor."""
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return gguf_text(name) + shape + struct.pack("<IQ", kind, offset)


LLAMA = (
    text_entry("general.architecture", "llama"),
    entry("llama.context_length", 4, b"\0\x10\0\0"),
)
WEIGHTS = (tensor("a", (32, 2)), tensor("b", (32,), 2, 256))


def gguf(
    entries: Sequence[bytes] = LLAMA,
    tensors: Sequence[bytes] = WEIGHTS,
    data: bytes = bytes(256 + 18),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these entries and tensors."""
    said = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *said) + b"".join((*entries, *tensors))
    return head + bytes(-len(head) % alignment) + data


def value(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[Any] = ("n", 4)) -> Any:
    """An input or an output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def weights(name: str = "w", **more: Any) -> Any:
    """An initializer of 4 x 3 numbers as raw data, changed as told."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4, 3], raw_data=bytes(48))
    for key, changed in more.items():
        if isinstance(changed, list):
            del getattr(made, key)[:]
            getattr(made, key).extend(changed)
        else:
            setattr(made, key, changed)
    return made


def outside(location: str, name: str = "w", **more: str) -> Any:
    """The same with its data in another file."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4, 3])
    made.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **more}.items():
        made.external_data.add(key=key, value=text)
    return made


def onnx_model(
    inputs: Sequence[Any] = (value("features"),),
    outputs: Sequence[Any] = (value("logits", shape=("n", 3)),),
    nodes: Sequence[Any] | None = None,
    initializers: Sequence[Any] | None = None,
    **more: Any,
) -> Any:
    """A model, by default one matrix product."""
    product = helper.make_node("MatMul", [inputs[0].name if inputs else "x", "w"], ["logits"])
    held = [weights()] if initializers is None else list(initializers)
    graph = helper.make_graph(list(nodes or [product]), "g", list(inputs), list(outputs), held)
    return helper.make_model(graph, ir_version=10, **more)


def onnx_file(*args: Any, **more: Any) -> bytes:
    """The same as a file."""
    return bytes(onnx_model(*args, **more).SerializeToString())


def text_onnx(*names: str) -> bytes:
    """A model that takes token ids."""
    taken = names or ("input_ids", "attention_mask")
    inputs = [value(name, TensorProto.INT64, ("n", "s")) for name in taken]
    cast = helper.make_node("Cast", [taken[0]], ["logits"], to=TensorProto.FLOAT)
    return onnx_file(inputs, nodes=[cast], initializers=[])


def nested(attribute: Any, depth: int = 1, arms: int = 2) -> Any:
    """A node with a graph in it, and so on, with a node of this attribute in the innermost."""
    inner = helper.make_node("Constant", [], ["c"])
    inner.attribute.append(attribute)
    for _ in range(depth):
        graph = helper.make_graph([inner], "inner", [], [value("c")])
        branches = dict.fromkeys(("then_branch", "else_branch")[:arms], graph)
        inner = helper.make_node("If", ["x"], ["c"], **branches)
    return inner


def with_tensor(made: Any) -> Any:
    """An attribute that holds a tensor."""
    return helper.make_attribute("value", made)


def archive(members: Mapping[str, bytes], packed: bool = False) -> bytes:
    """A zip file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return out.getvalue()


# What `pickle.dumps` writes for an object that runs a command when it is read.
_BY_NAME = b"cposix\nsystem\nq\x00X\x04\x00\x00\x00exitq\x01\x85q\x02Rq\x03."
_FRAMED = b"\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04exit\x94\x85\x94R\x94."
PICKLES = {
    2: b"\x80\x02" + _BY_NAME,
    3: b"\x80\x03" + _BY_NAME,
    4: b"\x80\x04\x95" + struct.pack("<Q", len(_FRAMED)) + _FRAMED,
    5: b"\x80\x05\x95" + struct.pack("<Q", len(_FRAMED)) + _FRAMED,
}
SCRIPT = {
    "m/data.pkl": PICKLES[2],
    "m/constants.pkl": b"\x80\x02).",
    "m/code/__torch__.py": b"pass",
    "m/version": b"3\n",
}
EXPORT = {
    "m/archive_format": b"pt2",
    "m/models/model.json": b"{}",
    "m/data/weights/w.pt": archive({"w/data.pkl": PICKLES[2]}),
}

MANIFEST = b"""schema: gristmill.dev/model/v1
name: m
task: classification
backend: onnxruntime
files: {model: model.onnx}
input: {kind: float_features}
"""

GOOD: dict[str, tuple[str, Files]] = {
    "onnx": ("classification", {"model.onnx": onnx_file()}),
    "onnx of text": ("classification", {"model.onnx": text_onnx(), "tokenizer.json": b"{}"}),
    "gguf": (
        "generation",
        {"model.gguf": gguf((*LLAMA, text_entry("tokenizer.chat_template", CHATML)))},
    ),
    "folder": (
        "generation",
        {
            "config.json": as_json(GENERATOR),
            "model.safetensors": safetensors(),
            "tokenizer.json": b'{"model": {}}',
            "tokenizer_config.json": as_json({"chat_template": CHATML, "model_max_length": 1e30}),
        },
    ),
    "classifier folder": (
        "classification",
        {
            "config.json": as_json(CLASSIFIER | {"id2label": {"0": "no", "1": "yes"}}),
            "model.safetensors": safetensors(),
            "tokenizer.json": b"{}",
        },
    ),
    "manifest": ("classification", {"model.yaml": MANIFEST, "model.onnx": onnx_file()}),
}


def load(data: bytes) -> Any:
    """The model in a file."""
    return onnx.load_model_from_string(data)
