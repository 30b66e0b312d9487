"""What the PyTorch backend decides without PyTorch: shapes, packing, buffers, graphs to keep."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.inference import loading
from services.inference.backends.pytorch_graphs import Graphs
from services.inference.backends.pytorch_packing import pack
from services.inference.backends.pytorch_shapes import (
    Shape,
    Sizes,
    check,
    packed_target,
    padded_target,
    write_packed,
    write_padded,
)
from services.inference.backends.pytorch_staging import ALIGNMENT, IDLE, Layout, Slots
from services.inference.manifest import Manifest
from services.runtime.errors import FailedPrecondition
from tests.unit.inference.batches import mixed
from tests.unit.registry_worker.folders import declare

BUCKETS = (16, 32, 64)
SIZES = Sizes.of(12, (6, 99), BUCKETS, 48)


def test_sizes_are_powers_of_two_and_what_the_manifest_prefers() -> None:
    assert SIZES.rows == (1, 2, 4, 6, 8, 12)
    assert SIZES.lengths == (16, 32, 48), "no item can be longer"
    assert [SIZES.shape(4, 32), SIZES.shape(5, 33)] == [Shape(4, 32), Shape(6, 48)]
    assert Sizes.of(1, (), BUCKETS, 0) == Sizes((1,), ()), "items without a length have none"


@given(st.data())
def test_a_batch_fits_its_shape_and_there_are_few(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 12))
    lengths = data.draw(st.lists(st.integers(1, 48), min_size=rows, max_size=rows))
    tokens = data.draw(st.sampled_from([0, sum(lengths)]))
    shape = SIZES.shape(rows, max(lengths), tokens)
    assert shape.rows in SIZES.rows
    assert shape.length in SIZES.lengths
    assert shape.rows >= rows
    assert shape.length >= max(lengths)
    if shape.tokens:
        assert tokens <= shape.tokens < shape.rows * shape.length, "packed only where that is less"
        assert shape.tokens in {2**n for n in range(5, 11)} | {3 * 2**n for n in range(4, 10)}
    elif tokens:
        assert shape.rows * shape.length <= max(64, tokens * 3 // 2), "it was not worth packing"


def test_without_sizes_a_batch_keeps_its_own() -> None:
    assert Sizes().shape(3, 17) == Shape(3, 17)
    assert Sizes().shape(3, 17, 40) == Shape(3, 17, 40)
    assert Sizes().shape(3, 17, 51) == Shape(3, 17), "there is no padding to leave out"
    assert Sizes((1, 2), (16,)).shape(5, 99) == Shape(5, 99), "larger than every size"


def test_a_padded_batch_is_filled_up() -> None:
    inputs = {"input_ids": np.array([[5, 6, 7], [8, 9, 1]]), "attention_mask": np.ones((2, 3), int)}
    shape = Shape(4, 5)
    into = made(padded_target(inputs, shape))
    write_padded(into, inputs, {"input_ids": 1}, shape)
    assert into["input_ids"].tolist() == [[5, 6, 7, 1, 1]] + [[8, 9, 1, 1, 1]] * 3
    assert into["attention_mask"].tolist() == [[1, 1, 1, 0, 0]] * 4


def test_rows_of_numbers_are_only_repeated() -> None:
    inputs = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    into = made(padded_target(inputs, Shape(4, 0)))
    write_padded(into, inputs, {}, Shape(4, 0))
    assert into["x"].dtype == np.float32
    np.testing.assert_array_equal(into["x"], inputs["x"][[0, 1, 1, 1]])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from([None, 1]))
def test_packing_keeps_every_token_and_nothing_else(
    lengths: list[int], counts_from: int | None
) -> None:
    inputs = mixed(lengths)
    packed = pack(inputs, counts_from)
    assert packed is not None
    assert (packed.lengths.tolist(), packed.longest) == (lengths, max(lengths))
    rows = [inputs["input_ids"][i, :n].tolist() for i, n in enumerate(lengths)]
    assert packed.arrays["input_ids"].tolist() == [list(chain(*rows))]
    first = 0 if counts_from is None else counts_from + 1
    positions = [list(range(first, first + n)) for n in lengths]
    assert packed.arrays["position_ids"].tolist() == [list(chain(*positions))]
    assert packed.arrays.keys() == {"input_ids", "token_type_ids", "position_ids"}


def test_a_padding_token_among_the_others_is_not_counted_where_the_model_does_not() -> None:
    inputs = {"input_ids": np.array([[0, 1, 7, 2]]), "attention_mask": np.ones((1, 4), int)}
    packed = pack(inputs, 1)
    assert packed is not None
    assert packed.arrays["position_ids"].tolist() == [[2, 1, 3, 4]]


@pytest.mark.parametrize("mask", [[[1, 1], [0, 0]], [[1, 1], [0, 1]]])
def test_what_is_no_run_of_tokens_is_not_packed(mask: list[list[int]]) -> None:
    assert pack({"input_ids": np.ones((2, 2), int), "attention_mask": np.array(mask)}) is None


def test_a_packed_batch_is_filled_up() -> None:
    packed = pack(mixed([2, 3]))
    assert packed is not None
    shape = Shape(4, 16, 8)
    into = made(packed_target(packed, shape))
    write_packed(into, packed, {"input_ids": 1}, shape)
    assert into["input_ids"].tolist() == [[*packed.arrays["input_ids"][0], 1, 1, 1]]
    assert into["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 0, 0]]
    assert into["starts"].tolist() == [0, 2, 5, 5, 5], "rows that lack are empty"
    assert into["firsts"].tolist() == [0, 2, 0, 0]
    assert into["starts"].dtype == np.int32


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(
            st.sampled_from([np.int64, np.float32, np.uint8, np.bool_]),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),
        ),
        min_size=1,
    )
)
def test_arrays_lie_apart_in_one_buffer(wanted: dict[str, Any]) -> None:
    layout = Layout.of({name: (np.dtype(kind), shape) for name, (kind, shape) in wanted.items()})
    buffer = np.zeros(layout.nbytes, np.uint8)
    views = layout.views(buffer)
    for number, view in enumerate(views.values(), 1):
        view[...] = number % 2 if view.dtype == np.bool_ else number
    for number, (name, view) in enumerate(views.items(), 1):
        assert (view.dtype, view.shape) == wanted[name]
        assert (view == (number % 2 if view.dtype == np.bool_ else number)).all()
        assert layout.parts[name].start % ALIGNMENT == 0
        assert view.size == 0 or np.shares_memory(view, buffer)


class Buffer:
    """One that knows its size."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def test_a_buffer_is_used_again_once_it_is_given_back() -> None:
    slots = Slots(Buffer)
    first = slots.take(100)
    second = slots.take(100)
    assert first is not second, "the first is in use"
    slots.give(first)
    assert slots.take(first.nbytes) is first
    assert slots.take(1).nbytes == 2**16
    assert slots.take(2**16 + 1).nbytes == 2**17


def test_the_smallest_that_fits_is_taken_and_few_are_kept() -> None:
    slots = Slots(Buffer)
    buffers = [Buffer(size) for size in (10, 30, 20, 60, 40, 50)]
    for buffer in buffers:
        slots.give(buffer)
    assert slots.take(25).nbytes == 30
    kept = sorted(slots.take(1).nbytes for _ in range(IDLE))
    assert kept == [40, 50, 60, 2**16], "the largest are kept"
    slots.give(buffers[0])
    slots.clear()
    assert slots.take(1) is not buffers[0]


def test_a_graph_is_captured_once_for_each_shape() -> None:
    captured: list[tuple[str, int]] = []

    def capture(key: str, example: int) -> str:
        captured.append((key, example))
        return f"graph of {key}"

    graphs = Graphs(capture, 4)
    assert [graphs.get("a", 1), graphs.get("b", 2), graphs.get("a", 3)] == [
        *("graph of a", "graph of b", "graph of a")
    ]
    assert captured == [("a", 1), ("b", 2)]
    graphs.clear()
    assert not len(graphs)


def test_of_too_many_graphs_the_one_unused_for_longest_gives_way() -> None:
    captured: list[str] = []

    def capture(key: str, _: None) -> str:
        captured.append(key)
        return key

    graphs = Graphs(capture, 2)
    for key in "abacab":
        graphs.get(key, None)
        assert len(graphs) <= 2
    assert captured == ["a", "b", "c", "b"], "b was older than a when c came"


def test_where_capturing_fails_batches_run_without() -> None:
    tried: list[str] = []

    def capture(key: str, _: None) -> str:
        tried.append(key)
        if key != "a":
            raise RuntimeError("operation not permitted when stream is capturing")
        return key

    graphs = Graphs(capture, 4)
    with capture_logs() as logs:
        assert [graphs.get(key, None) for key in "abcb"] == ["a", None, None, None]
    assert tried == ["a", "b"], "what failed once is not tried again"
    assert graphs.get("a", None) == "a", "what was captured goes on"
    assert [line["log_level"] for line in logs] == ["warning"]


def test_no_graphs_are_captured_where_none_are_wanted() -> None:
    assert Graphs[str, None, str](lambda key, _: key, 0).get("a", None) is None


@pytest.mark.parametrize(
    ("row", "said"),
    [([3, 10], "from 0 to 9"), ([-1, 3], "from 0 to 9"), ([1, 2, 3], "3 tokens are more than 2")],
)
def test_a_gpu_is_never_given_what_it_would_not_survive(row: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=f"ids: .*{said}"):
        check({"ids": np.array([row])}, {"ids": 10}, 2)
    check({"ids": np.array([[0, 9]]), "free": np.array([[-5, 99]])}, {"ids": 10, "free": 0}, 2)


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    declare(tmp_path, backend="pytorch", files={"model": "model.safetensors"})
    with pytest.raises(FailedPrecondition, match="backend pytorch needs the package torch"):
        loading.load(Manifest.read(tmp_path), tmp_path)


def made(target: Any) -> dict[str, Any]:
    """Arrays full of something else."""
    return {name: np.full(shape, 77, dtype) for name, (dtype, shape) in target.items()}
