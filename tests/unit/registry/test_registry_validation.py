"""What a version is rejected for, by which rule, and that checking it runs nothing."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.registry.resources import Task, VersionRecord
from services.registry.validation import MAX_MANIFEST_BYTES, PICKLED, Findings, validate
from services.runtime.errors import DataLoss
from tests.unit.registry.parts import MANIFEST, MANIFEST_LLM, Parts, artifact, below, sha

GGUF = b"GGUF\x03\0\0\0"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


async def findings(
    parts: Parts, files: dict[str, bytes], task: Task = "classification"
) -> Findings:
    """What the checks find in a version of these files."""
    await parts.put(*files.values())
    return await validated(parts, files, task)


async def validated(parts: Parts, files: dict[str, bytes], task: Task) -> Findings:
    """The same, of files that are stored."""
    artifacts = tuple(artifact(path, data) for path, data in files.items())
    record = VersionRecord(model="m", version=1, artifacts=artifacts, create_time=NOW)
    return await validate(record, task, parts.blobs)


def rules(found: Findings) -> list[tuple[str, str]]:
    """Path and rule of each rejection."""
    return [(rejection.path, rejection.rule) for rejection in found.rejections]


async def test_a_classifier_in_order_has_a_signature_and_no_rejection(parts: Parts) -> None:
    found = await findings(parts, {"model.yaml": MANIFEST, "model.onnx": b"\x08\x07"})
    assert found.rejections == ()
    assert found.signature is not None
    assert found.signature.input_kinds == ("text",)
    assert found.signature.labels == ("negative", "positive")
    assert found.signature.max_tokens == 128
    assert not found.signature.multi_label


async def test_a_language_model_in_order(parts: Parts) -> None:
    found = await findings(parts, {"model.yaml": MANIFEST_LLM, "model.gguf": GGUF}, "generation")
    assert found.rejections == ()
    assert found.signature is not None
    assert found.signature.input_kinds == ()
    assert found.signature.max_tokens == 2048


async def test_features_have_no_tokens(parts: Parts) -> None:
    manifest = MANIFEST.replace(b"kind: text, max_tokens: 128", b"kind: float_features")
    found = await findings(parts, {"model.yaml": manifest, "model.onnx": b"x"})
    assert found.rejections == ()
    assert found.signature is not None
    assert found.signature.max_tokens == 0


@pytest.mark.parametrize("ending", PICKLED)
async def test_formats_that_execute_are_refused_whatever_the_case(
    parts: Parts, ending: str
) -> None:
    paths = (f"a{ending}", f"sub/B{ending.upper()}", f"{ending[1:]}.c{ending}")
    files = {"model.yaml": MANIFEST, "model.onnx": b"x"} | dict.fromkeys(paths, b"\x80\x04.")
    found = await findings(parts, files)
    assert rules(found) == [(path, "pickle-refused") for path in paths]
    assert "safetensors or ONNX" in found.rejections[0].message


async def test_a_name_that_only_contains_an_ending_is_not_one(parts: Parts) -> None:
    files = {"model.yaml": MANIFEST, "model.onnx": b"x", "a.pkl.txt": b"y", "binary": b"z"}
    assert (await findings(parts, files)).rejections == ()


BROKEN = {
    "missing": None,
    "empty": b"",
    "no mapping": b"[1, 2]",
    "no YAML": b"a: [",
    "not UTF-8": b"\xff\xfe",
    "NUL": b'notes: "\0"',
    "unknown key": MANIFEST + b"colour: red\n",
    "another schema": MANIFEST.replace(b"v1", b"v2"),
    "a path": MANIFEST.replace(b"model.onnx", b"../model.onnx"),
    "two documents": MANIFEST + b"---\n" + MANIFEST,
    "no date": MANIFEST + b"notes: 2001-99-99\n",
    "no number": MANIFEST + b"metrics: {a: " + b"9" * 5000 + b"}\n",
    "code": MANIFEST + b'notes: !!python/object/apply:os.mkdir ["ran"]\n',
    "deep": MANIFEST + b"notes: " + b"[" * 20_000,
    "deep and closed": MANIFEST + b"notes: " + b"[" * 500 + b"]" * 500,
    "itself": b"&a [*a]",
    "too large": MANIFEST + b"#" * MAX_MANIFEST_BYTES,
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_version_without_a_manifest_that_can_be_read_is_rejected(
    parts: Parts, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts.root)
    text = BROKEN[case]
    files = {"model.onnx": b"x"} | ({} if text is None else {"model.yaml": text})
    found = await findings(parts, files)
    assert rules(found) == [("model.yaml", "manifest")]
    assert found.signature is None
    assert found.rejections[0].message.startswith("model.yaml: ")
    assert len(found.rejections[0].message) <= 500
    assert not Path("ran").exists()


async def test_a_few_bytes_of_aliases_do_not_become_gigabytes(parts: Parts) -> None:
    bomb = b"a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n".encode() for n in range(1, 12)
    )
    began = time.monotonic()
    found = await asyncio.wait_for(
        findings(parts, {"model.yaml": MANIFEST + bomb, "model.onnx": b"x"}), 20
    )
    assert rules(found) == [("model.yaml", "manifest")]
    assert "aliases" in found.rejections[0].message
    assert time.monotonic() - began < 10


async def test_what_the_manifest_names_must_be_there(parts: Parts) -> None:
    manifest = MANIFEST.replace(b"{model:", b"{tokenizer: tokenizer.json, model:")
    found = await findings(parts, {"model.yaml": manifest, "sub/model.onnx": b"x"})
    assert rules(found) == [("model.yaml", "file-missing")] * 2
    assert [r.message for r in found.rejections] == [
        "tokenizer: tokenizer.json is not an artifact",
        "model: model.onnx is not an artifact",
    ]


async def test_a_manifest_in_a_sub_folder_is_not_the_manifest(parts: Parts) -> None:
    found = await findings(parts, {"sub/model.yaml": MANIFEST, "model.onnx": b"x"})
    assert rules(found) == [("model.yaml", "manifest")]
    assert "missing" in found.rejections[0].message


@pytest.mark.parametrize(
    ("manifest", "task", "rule"),
    [
        (MANIFEST_LLM.replace(b"gguf", b"onnx"), "classification", ["task", "manifest"]),
        (MANIFEST, "generation", ["task", "manifest"]),
        (MANIFEST.replace(b"backend: onnxruntime\n", b""), "classification", ["manifest"]),
        (MANIFEST_LLM.replace(b"engine: openvino-genai\n", b""), "generation", ["manifest"]),
    ],
)
async def test_the_manifest_must_suit_the_task_of_the_model(
    parts: Parts, manifest: bytes, task: Task, rule: list[str]
) -> None:
    files = {"model.yaml": manifest, "model.onnx": b"x", "model.gguf": GGUF}
    found = await findings(parts, files, task)
    assert [one.rule for one in found.rejections] == rule


@pytest.mark.parametrize("head", [b"", b"G", b"GGU", b"gguf", b"\x80\x04GGUF", b"FUGG"])
async def test_a_gguf_begins_as_one(parts: Parts, head: bytes) -> None:
    files = {"model.yaml": MANIFEST_LLM, "model.gguf": GGUF, "more.GGUF": head}
    found = await findings(parts, files, "generation")
    assert rules(found) == [("more.GGUF", "header")]


async def test_every_reason_is_given_at_once(parts: Parts) -> None:
    files = {"model.yaml": MANIFEST, "weights.pt": b"x", "a.gguf": b"no"}
    found = await findings(parts, files, "generation")
    assert rules(found) == [
        ("weights.pt", "pickle-refused"),
        ("model.yaml", "file-missing"),
        ("model.yaml", "task"),
        ("model.yaml", "manifest"),
        ("a.gguf", "header"),
    ]


async def test_a_manifest_that_rotted_on_the_disk_is_no_rejection(parts: Parts) -> None:
    """The version is not at fault: it may be finalized when the bytes are right again."""
    await parts.put(MANIFEST)
    (path,) = [path for path in below(parts.root / "artifacts") if path.name == sha(MANIFEST)]
    path.write_bytes(MANIFEST.replace(b"sentiment", b"Sentiment"))
    with pytest.raises(DataLoss):
        await validated(parts, {"model.yaml": MANIFEST}, "classification")
