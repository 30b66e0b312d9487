"""Values: nobody changes them, and as bytes they are whole, or nothing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.inference.cache.sealing import SEAL_BYTES, Sealer
from services.inference.cache.values import MOST_SCORED, Value
from services.inference.scoring import Choice, Outputs

SEALER = Sealer(b"a secret of this test")
KEY = bytes(range(32))
TYPES = ["<f4", "<f8", "<f2", ">f4", "<i8", "|u1", "|b1", "<c8", "|S3", "<U2", "|O"]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Outputs, int]:
    """Outputs of a batch, and the index of an item in it."""
    rows = draw(st.integers(1, 3))
    found = {}
    for name in draw(st.lists(st.text(max_size=3), min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from(TYPES))
        shape = (rows, *draw(st.sampled_from([(), (1,), (3,), (2, 2), (0,)])))
        if kind == "|O":
            array = np.empty(shape, dtype=object)
            for at in np.ndindex(shape):
                array[at] = draw(st.one_of(st.text(max_size=3), st.binary(max_size=3)))
        else:
            count = int(np.prod(shape))
            raw = draw(st.binary(min_size=count * np.dtype(kind).itemsize).map(bytes))
            size = count * np.dtype(kind).itemsize
            if kind == "|b1":
                raw = bytes(byte & 1 for byte in raw)
            if kind == "<U2":
                raw = b"a\0\0\0" * (size // 4)
            array = np.frombuffer(raw[:size], kind).reshape(shape)
        found[name] = array
    return Outputs(found), draw(st.integers(0, rows - 1))


def same(one: Any, other: Any) -> bool:
    """Whether two arrays agree in type, shape and every bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == object:
        pairs = zip(one.flat, other.flat, strict=True)
        return all(type(a) is type(b) and a == b for a, b in pairs)
    return bool(one.tobytes() == other.tobytes())


@given(batches(), st.integers(0, 2**32 - 1), st.booleans())
@example((Outputs({"p": np.array([[np.nan, -0.0]], np.float32)}), 0), 7, True)
def test_an_item_s_share_survives_being_kept_and_being_sealed(
    batch: tuple[Outputs, int], tokens: int, truncated: bool
) -> None:
    outputs, index = batch
    kept = Value.of(outputs, index, tokens, truncated=truncated)
    data = SEALER.seal(KEY, kept)
    assert data is not None
    for value in (kept, SEALER.open(KEY, data)):
        assert (value.tokens, value.truncated) == (tokens, truncated)
        assert list(value.arrays) == list(outputs.arrays)
        for name, array in outputs.arrays.items():
            assert same(value.arrays[name], array[index : index + 1])
            assert same(np.asarray(value.outputs[name]), np.asarray(array[index]))
        assert value.nbytes == kept.nbytes


def test_what_a_batch_becomes_later_does_not_reach_what_was_kept() -> None:
    numbers = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    names = np.array([["a"], ["b"]], object)
    value = Value.of(Outputs({"probabilities": numbers, "names": names}), 1)
    numbers[:], names[:] = 0, "changed"
    assert value.outputs["probabilities"].tolist() == [3.0, 4.0]
    assert value.outputs["names"].tolist() == ["b"]
    assert all(array.base is None or array.base is not numbers for array in value.arrays.values())


@pytest.mark.parametrize("sealed", [False, True])
def test_nobody_can_change_what_was_kept(sealed: bool) -> None:
    arrays = {
        "n": np.array([[1.0, 2.0]], np.float32),
        "o": np.array([["a", b"b"]], object),
        "e": np.zeros((1, 0), np.float32),
    }
    value = Value.of(Outputs(arrays), 0)
    if sealed:
        data = SEALER.seal(KEY, value)
        assert data is not None
        value = SEALER.open(KEY, data)
    for name in arrays:
        row = value.outputs[name]
        with pytest.raises(ValueError, match="read-only|WRITEABLE"):
            row[...] = 9
        with pytest.raises(ValueError, match="WRITEABLE"):
            row.setflags(write=True)
    with pytest.raises(ValueError, match="WRITEABLE"):
        value.arrays["n"].setflags(write=True)


def test_a_value_gives_the_labels_that_its_batch_gave() -> None:
    logits = np.array([[0.1, 0.7, 0.2], [3.0, -1.0, 0.5]], np.float32)
    names = ("a", "b", "c")
    for multi_label in (False, True):
        batch = Outputs({"logits": logits}, multi_label=multi_label)
        for index in (0, 1):
            kept = Value.of(batch, index).scored(multi_label=multi_label)
            assert (kept.index, kept.timings.batch_size) == (0, 0)
            for choice in (Choice(), Choice(3), Choice(1, 0.2)):
                ours = kept.batch.scores.labels(kept.index, names, choice)
                assert ours == batch.scores.labels(index, names, choice)


def test_probabilities_of_small_answers_are_made_once() -> None:
    small = Value.of(Outputs({"logits": np.zeros((1, MOST_SCORED), np.float32)}), 0)
    large = Value.of(Outputs({"logits": np.zeros((1, MOST_SCORED + 1), np.float32)}), 0)
    assert small.scored(multi_label=False) is small.scored(multi_label=False)
    assert large.scored(multi_label=False) is not large.scored(multi_label=False)


@given(batches(), st.data())
def test_bytes_that_were_changed_or_cut_are_no_value(
    batch: tuple[Outputs, int], draw: st.DataObject
) -> None:
    data = SEALER.seal(KEY, Value.of(*batch))
    assert data is not None
    at = draw.draw(st.integers(0, len(data) - 1))
    bit = 1 << draw.draw(st.integers(0, 7))
    for bad in (
        data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :],
        data[:at],
        data + b"\0",
    ):
        with pytest.raises(ValueError, match="version|sealed"):
            SEALER.open(KEY, bad)


def test_what_another_key_or_another_secret_sealed_is_no_value() -> None:
    value = Value.of(Outputs({"p": np.ones((1, 2), np.float32)}), 0)
    data = SEALER.seal(KEY, value)
    assert data is not None
    with pytest.raises(ValueError, match="not what was sealed"):
        SEALER.open(bytes(32), data)
    with pytest.raises(ValueError, match="not what was sealed"):
        Sealer(b"another secret of this test").open(KEY, data)


def body(*arrays: bytes, head: bytes = b"\7\0\0\0\0", count: int | None = None) -> bytes:
    """What is sealed, of arrays that are packed already."""
    number = len(arrays) if count is None else count
    return head + number.to_bytes(2, "little") + b"".join(arrays)


def packed(kind: bytes, *shape: int, data: bytes = b"", name: bytes = b"n") -> bytes:
    """An array as it is packed."""
    dimensions = b"".join(size.to_bytes(8, "little") for size in shape)
    return counted(name) + counted(kind) + bytes([len(shape)]) + dimensions + counted(data)


def counted(part: bytes) -> bytes:
    return len(part).to_bytes(4, "little") + part


GOOD = packed(b"<f4", 1, 1, data=b"\0\0\0\0")
STRINGS = b"b" + counted(b"x") + b"s" + counted(b"y")


def sealed(content: bytes) -> bytes:
    """Under a good seal, which nobody can make who has not the secret."""
    return b"\1" + SEALER._seal(KEY, content) + content


@pytest.mark.parametrize("content", [body(), body(GOOD), body(packed(b"|O", 1, 2, data=STRINGS))])
def test_what_is_well_formed_is_read(content: bytes) -> None:
    assert SEALER.seal(KEY, SEALER.open(KEY, sealed(content))) == sealed(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        body(GOOD) + b"\0",
        body(GOOD)[:-1],
        body(GOOD, GOOD),
        body(GOOD, count=2),
        body(GOOD, head=b"\7\0\0\0\2"),
        body(packed(b"<f4", 2, data=b"\0\0\0\0")),
        body(packed(b"<f4", 2**63, 2, data=b"")),
        body(packed(b"<f4", *[0] * 33)),
        body(packed(b"<f3", 0)),
        body(packed(b"<M8", 0)),
        body(packed(b"|V4", 1, data=b"\0\0\0\0")),
        body(packed(b"O", 0)),
        body(packed(b"\xff", 0)),
        body(packed(b"<U99999999999", 0)),
        body(packed(b"<f4", 0, name=b"\xff")),
        body(packed(b"|O", 1, data=b"x" + counted(b"a"))),
        body(packed(b"|O", 1, data=b"s" + counted(b"\xff"))),
        body(packed(b"|O", 1, data=b"b" + counted(b"a")[:-1])),
        body(packed(b"|O", 3, data=STRINGS)),
    ],
    ids=range(20),
)
def test_what_is_malformed_is_no_value_even_under_a_good_seal(content: bytes) -> None:
    with pytest.raises(ValueError, match="malformed|cut|too long|reshape"):
        SEALER.open(KEY, sealed(content))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 2), dtype=[("x", "<i4")]),
        np.zeros((1, 2), dtype="<M8[s]"),
        np.array([[1, None]], object),
        np.array([["\ud83d"]], object),
    ],
    ids=["structured", "time", "objects", "surrogate"],
)
def test_what_bytes_cannot_tell_is_kept_in_memory_only(array: Any) -> None:
    value = Value.of(Outputs({"x": array}), 0)
    assert same(value.arrays["x"], array)
    assert SEALER.seal(KEY, value) is None


def test_a_seal_costs_little_and_no_value_is_stored_without() -> None:
    value = Value.of(Outputs({"probabilities": np.ones((1, 3), np.float32)}), 0)
    data = SEALER.seal(KEY, value)
    assert data is not None
    assert len(data) < 1 + SEAL_BYTES + 12 + 64
