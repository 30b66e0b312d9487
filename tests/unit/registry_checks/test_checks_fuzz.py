"""Damaged files get a report, soon: no exception, whatever the damage."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.registry.checks import Policy, Report, check
from tests.unit.registry_checks.corpus import (
    CHATML,
    EXPORT,
    GENERATOR,
    LLAMA,
    MANIFEST,
    SCRIPT,
    archive,
    as_json,
    gguf,
    nested,
    onnx_file,
    outside,
    safetensors,
    text_entry,
    weights,
    with_tensor,
    write,
)

SOON_S = 10.0
NODES = [nested(with_tensor(weights("c")), 1)]
FILES = {
    "a.safetensors": safetensors(),
    "a.gguf": gguf((*LLAMA, text_entry("tokenizer.chat_template", CHATML))),
    "model.onnx": onnx_file(nodes=NODES, initializers=[weights(), outside("w.data", "v")]),
    "model.pt": archive(SCRIPT),
    "model.pt2": archive(EXPORT, packed=True),
    "config.json": as_json({**GENERATOR, "id2label": {"0": "a"}}),
    "tokenizer_config.json": as_json({"chat_template": CHATML}),
    "tokenizer.json": as_json({"model": {"vocab": {"a": 1}}}),
    "model.yaml": MANIFEST,
    "chat_template.jinja": CHATML.encode(),
    "weights.dat": b"\x80\x04\x95" + bytes(8) + b"\x8c\x05posix\x94.",
    "a.npy": b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n",
}
Change = tuple[str, int, int]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("flip", "set", "cut", "drop", "insert", "repeat")),
        st.integers(0, 1 << 16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def damaged(data: bytes, changes: list[Change]) -> bytes:
    """The data after these changes."""
    for how, where, what in changes:
        at = where % (len(data) + 1)
        before, after = data[:at], data[at:]
        made: dict[str, Callable[[], bytes]] = {
            "flip": lambda b=before, a=after, w=what: (
                b + bytes([a[0] ^ (w or 1)]) + a[1:] if a else b
            ),
            "set": lambda b=before, a=after, w=what: b + bytes([w]) + a[1:],
            "cut": lambda b=before: b,
            "drop": lambda b=before, a=after, w=what: b + a[w:],
            "insert": lambda b=before, a=after, w=what: b + bytes([w]) + a,
            "repeat": lambda b=before, a=after, w=what: b + a[:w] + a,
        }
        data = made[how]()
    return data


def checked(folder: Path, path: str, data: bytes) -> Iterator[Report]:
    """The reports on this file beside a good one, for each policy and task."""
    files = {"w.data": bytes(64), path: data}
    for allow_pickle in (False, True):
        for task in ("classification", "generation"):
            began = time.monotonic()
            yield check(folder, write(folder, files), "m", task, Policy(allow_pickle=allow_pickle))
            assert time.monotonic() - began < SOON_S


@pytest.mark.parametrize("path", FILES)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES)
def test_damage_is_reported(path: str, changes: list[Change], tmp_path: Path) -> None:
    for report in checked(tmp_path, path, damaged(FILES[path], changes)):
        assert isinstance(report, Report)
        assert all(r.message.isprintable() and len(r.message) <= 500 for r in report.rejections)
        report.signature and report.signature.model_dump_json()


@pytest.mark.parametrize("path", FILES)
def test_every_beginning_of_a_file_is_reported(path: str, tmp_path: Path) -> None:
    data = FILES[path]
    step = max(1, len(data) // 150)
    for length in range(0, len(data), step):
        for report in checked(tmp_path, path, data[:length]):
            assert isinstance(report, Report)


@pytest.mark.parametrize("path", FILES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_noise_is_reported(path: str, data: bytes, tmp_path: Path) -> None:
    for report in checked(tmp_path, path, data):
        assert isinstance(report, Report)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                *("{{ ", " }}", "{% ", " %}", "for a in ", "messages", "endfor", "if ", "endif"),
                *("set x = ", "x", "range(9999)", " ~ ", " * ", " ** ", "99999", "'ab'", "[", "]"),
                *(
                    "macro m()",
                    "endmacro",
                    "m()",
                    " | join(x)",
                    " | tojson",
                    ".upper()",
                    "namespace(",
                ),
                *(")", "(", "{#", "#}", "-", "recursive", " | list", "x.y = ", "break", "\n"),
            ]
        ),
        max_size=40,
    )
)
def test_templates_of_scraps_are_reported(pieces: list[str], tmp_path: Path) -> None:
    for report in checked(tmp_path, "chat_template.jinja", "".join(pieces).encode()):
        assert isinstance(report, Report)
