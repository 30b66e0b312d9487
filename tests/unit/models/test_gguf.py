"""The GGUF header is read as the format says, and anything else is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from models.smollm2.gguf import NotGgufError, read_metadata


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def header(*entries: bytes, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


ENTRIES = (
    text("general.architecture") + struct.pack("<I", 8) + text("llama"),
    text("tokenizer.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
    text("nested") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 4, 2) + bytes(8),
    text("llama.context_length") + struct.pack("<II", 4, 8192),
    text("llama.rope.freq_base") + struct.pack("<If", 6, 1.5),
    text("tokenizer.add_bos") + struct.pack("<IB", 7, 1),
)


def test_scalars_are_read_and_arrays_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(*ENTRIES) + b"tensors")
    assert read_metadata(path) == {
        "general.architecture": "llama",
        "llama.context_length": 8192,
        "llama.rope.freq_base": 1.5,
        "tokenizer.add_bos": True,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(magic=b"GGML"),
        header(version=1),
        header(*ENTRIES)[:-1],
        header(text("odd") + struct.pack("<I", 99)),
        header(text("x") + struct.pack("<I", 8) + struct.pack("<Q", 1 << 62)),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(NotGgufError):
        read_metadata(path)
