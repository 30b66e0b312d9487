"""What is in order passes, however near it comes to what is not."""

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from services.registry.checks import Policy, Report, check, contents, pickles
from services.registry.checks.gguf_types import BLOCKS
from services.registry.checks.onnx_shapes import BITS
from services.registry.converters import signature_out
from services.registry.readers import signature_in
from services.registry.resources import TensorRecord
from tests.unit.registry_checks.corpus import (
    EXPORT,
    GOOD,
    LLAMA,
    MANIFEST,
    SCRIPT,
    Files,
    archive,
    as_json,
    entry,
    gguf,
    nested,
    onnx_file,
    onnx_model,
    outside,
    safetensors,
    tensor,
    text_entry,
    value,
    weights,
    with_tensor,
    write,
)


def report(folder: Path, files: Files, task: Any = "classification", **policy: Any) -> Report:
    return check(folder, write(folder, files), "m", task, Policy(**policy))


def beside_a_manifest(folder: Path, files: Files, **policy: Any) -> Report:
    """The report on files that need not say what they are."""
    return report(folder, {"model.yaml": MANIFEST, "model.onnx": onnx_file(), **files}, **policy)


@pytest.mark.parametrize("name", GOOD)
def test_good_versions_pass(name: str, tmp_path: Path) -> None:
    task, files = GOOD[name]
    found = report(tmp_path, files, task)
    assert found.rejections == ()
    assert found.manifest is not None
    assert found.manifest.task == task
    assert found.signature is not None
    assert (found.manifest_text is None) == ("model.yaml" in files)


ORDINARY: dict[str, Files] = {
    "no tensors": {"a.safetensors": safetensors({}, b"")},
    "an empty tensor": {
        "a.safetensors": safetensors(
            {"a": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}}, b""
        )
    },
    "a scalar": {
        "a.safetensors": safetensors(
            {"a": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]}}, b"xy"
        )
    },
    "halves of bytes": {
        "a.safetensors": safetensors(
            {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"xy"
        )
    },
    "spaces behind the header": {
        "a.safetensors": safetensors(b'{"__metadata__":{"a":"b"}}   ', b"")
    },
    "GGUF 2": {"a.gguf": gguf(version=2)},
    "GGUF without tensors": {"a.gguf": gguf(tensors=[], data=b"")},
    "aligned otherwise": {
        "a.gguf": gguf(
            (entry("general.alignment", 4, struct.pack("<I", 64)),),
            [tensor("a", (8,)), tensor("b", (8,), 0, 64)],
            bytes(96),
            alignment=64,
        )
    },
    "arrays": {
        "a.gguf": gguf(
            (
                *LLAMA,
                entry(
                    "texts", 9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"a" + bytes(8)
                ),
                entry("numbers", 9, struct.pack("<IQ", 4, 3) + bytes(12)),
                entry("arrays", 9, struct.pack("<IQIQ", 9, 1, 0, 2) + b"ab"),
                entry("truth", 7, b"\1"),
            )
        )
    },
    "a named template": {
        "a.gguf": gguf((text_entry("tokenizer.chat_template.tool", "{{ tools[0] }}"),))
    },
    "texts and labels": {
        "README.md": b"classes\nfoo\nReadme\n",
        "labels.txt": b"cat\ndog\nRabbit\n",
    },
    "an ending within": {"a.pkl.txt": b"x", "binary": b"x"},
    "an array of numbers": {
        "a.npy": b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"
        + bytes(4)
    },
    "a vocabulary": {"vocab.json": as_json({"auto_map": 17, "trust_remote_code": 4})},
    "a nested config": {"config.json": b"[" * 100 + b"]" * 100},
    "brackets in texts": {"config.json": as_json({"a": '[[[{{{"\\' * 100})},
    "no template": {"tokenizer_config.json": as_json({"chat_template": None})},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_files_pass(name: str, tmp_path: Path) -> None:
    assert beside_a_manifest(tmp_path, ORDINARY[name]).rejections == ()


def test_a_header_that_begins_like_an_archive_or_a_pickle_is_neither(tmp_path: Path) -> None:
    """The first bytes of a safetensors file are its header's length: any bytes at all."""
    for length in (0x088B1F, 0x0280, 0x5D0280, 0x2E0480):
        text = b"{}" + b" " * (length - 2)
        found = beside_a_manifest(tmp_path, {"a.safetensors": safetensors(text, b"")})
        assert found.rejections == (), hex(length)


@pytest.mark.parametrize("kind", BLOCKS)
def test_each_gguf_type_takes_exactly_its_bytes(kind: int, tmp_path: Path) -> None:
    _, values, size = BLOCKS[kind]
    for missing in (0, 1):
        data = gguf(tensors=[tensor("a", (values, 3), kind)], data=bytes(3 * size - missing))
        assert len(beside_a_manifest(tmp_path, {"a.gguf": data}).rejections) == missing


@pytest.mark.parametrize("kind", BITS)
def test_each_onnx_type_takes_exactly_its_bytes(kind: int, tmp_path: Path) -> None:
    size = -(-12 * BITS[kind] // 8)
    for missing in (0, 1):
        made = weights(data_type=kind, raw_data=bytes(size - missing))
        files = {"model.yaml": MANIFEST, "model.onnx": onnx_file(initializers=[made])}
        assert len(report(tmp_path, files).rejections) == missing


def test_the_sizes_are_those_that_onnx_writes() -> None:
    """Held against the library for the types that it can make."""
    for kind in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 21, 22):
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if kind not in (17, 21, 22):
            assert dtype.itemsize * 8 == BITS[kind]


def test_typed_data_passes(tmp_path: Path) -> None:
    tensors = [
        helper.make_tensor("w", TensorProto.FLOAT, [4, 3], [1.0] * 12),
        helper.make_tensor("i", TensorProto.INT64, [3], [1, -2, 3]),
        TensorProto(name="s", data_type=TensorProto.STRING, dims=[2], string_data=[b"", b"b"]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("q", TensorProto.INT4, [5], [1, 2, 3, 4, 5]),
        helper.make_tensor("e", TensorProto.FLOAT, [0], []),
        helper.make_tensor("d", TensorProto.DOUBLE, [], [1.0]),
        helper.make_tensor("b", TensorProto.BOOL, [2], [True, False]),
    ]
    files = {"model.yaml": MANIFEST, "model.onnx": onnx_file(initializers=tensors)}
    assert report(tmp_path, files).rejections == ()


def test_external_data_beside_the_model_passes(tmp_path: Path) -> None:
    made = outside("w.data", offset="16", length="48", checksum="0" * 40)
    files = {"sub/model.onnx": onnx_file(initializers=[made]), "sub/w.data": bytes(64)}
    assert beside_a_manifest(tmp_path, files).rejections == ()


def test_graphs_in_graphs_functions_and_domains_pass(tmp_path: Path) -> None:
    node = helper.make_node("FusedGemm", ["x"], ["y"], domain="com.microsoft")
    made = onnx_model(nodes=[nested(with_tensor(weights("c")), 3), node])
    # As ONNX Runtime's optimizer writes them, used or not.
    for domain in ("ai.onnx.training", "com.ms.internal.nhwc", "org.pytorch.aten"):
        made.opset_import.add(domain=domain, version=1)
    made.functions.append(helper.make_function("ai.onnx.ml", "F", ["x"], ["y"], [node], []))
    made.metadata_props.add(key="a", value="b")
    files = {"model.yaml": MANIFEST, "model.onnx": made.SerializeToString()}
    assert report(tmp_path, files).rejections == ()


def test_the_signature_names_inputs_and_outputs(tmp_path: Path) -> None:
    inputs = [value("x", TensorProto.INT64, ("n", 2, None)), value("w")]
    outputs = [value("y", TensorProto.STRING, (3,)), value("z", TensorProto.BFLOAT16, ())]
    data = onnx_file(inputs, outputs, nodes=[helper.make_node("If", ["x"], ["y"])])
    found = report(tmp_path, {"model.yaml": MANIFEST, "model.onnx": data}).signature
    assert found is not None
    assert found.inputs == (TensorRecord(name="x", datatype="INT64", shape=(-1, 2, -1)),)
    assert found.outputs == (
        TensorRecord(name="y", datatype="BYTES", shape=(3,)),
        TensorRecord(name="z", datatype="BF16", shape=()),
    )


@pytest.mark.parametrize(
    ("said", "kind", "max_tokens"),
    [
        ("{kind: float_features, max_tokens: 7}", "float_features", 0),
        ("{kind: image, image: {width: 4, height: 4}}", "image", 0),
        ("{kind: tensors}", "tensors", 0),
        ("{kind: text, max_tokens: 7}", "text", 7),
        ("{kind: text_pair, max_tokens: 7}", "text_pair", 7),
    ],
)
def test_the_signature_names_what_callers_send(
    tmp_path: Path, said: str, kind: str, max_tokens: int
) -> None:
    manifest = MANIFEST.replace(b"{kind: float_features}", said.encode())
    found = report(tmp_path, {"model.yaml": manifest, "model.onnx": onnx_file()})
    assert found.rejections == ()
    assert found.signature is not None
    assert (found.signature.input_kinds, found.signature.max_tokens) == ((kind,), max_tokens)
    assert signature_in(signature_out(found.signature)) == found.signature


def test_an_image_model_says_how_large_images_are(tmp_path: Path) -> None:
    for said in (b"{kind: image}", b"{kind: tensors, image: {width: 4, height: 4}}"):
        manifest = MANIFEST.replace(b"{kind: float_features}", said)
        found = report(tmp_path, {"model.yaml": manifest, "model.onnx": onnx_file()})
        assert [(r.path, r.rule) for r in found.rejections] == [("model.yaml", "manifest")]
        assert "image is" in found.rejections[0].message


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        (SCRIPT, contents.Torch.SCRIPT),
        (EXPORT, contents.Torch.EXPORT),
        ({"archive/data.pkl": b"", "archive/data/0": b""}, contents.Torch.WEIGHTS),
        ({"a.txt": b""}, None),
    ],
)
def test_pytorch_archives_are_told_apart(members: dict[str, bytes], kind: object) -> None:
    assert contents.torch_archive(list(members)) == kind


def test_the_operator_may_allow_pickles(tmp_path: Path) -> None:
    files = {
        "model.pt": archive(SCRIPT),
        "model.pt2": archive(EXPORT, packed=True),
        "other.pkl": b"\x80\x04N.",
    }
    assert beside_a_manifest(tmp_path, files, allow_pickle=True).rejections == ()


def test_headers_are_bounded_by_the_policy(tmp_path: Path) -> None:
    text = b"{}" + b" " * 1000
    files = {
        "a.safetensors": safetensors(text, b""),
        "a.gguf": gguf((text_entry("a", "b" * 1000),)),
    }
    found = beside_a_manifest(tmp_path, files, max_header_bytes=500)
    assert [(r.path, r.rule) for r in found.rejections] == [
        ("a.safetensors", "header"),
        ("a.gguf", "header"),
    ]
    assert beside_a_manifest(tmp_path, files, max_header_bytes=5000).rejections == ()


def test_random_bytes_are_no_pickles() -> None:
    source = random.Random(7)
    heads = [source.randbytes(256) for _ in range(5000)]
    assert sum(pickles.is_pickle(head) for head in heads) == 0
