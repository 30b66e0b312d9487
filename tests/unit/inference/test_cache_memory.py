"""The cache in memory: bounded by bytes, to the byte, and those are real."""

import gc
import os
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.cache.memory import ENTRY_BYTES, Memory
from services.inference.cache.values import Value
from services.inference.scoring import Outputs


def value(numbers: int = 3, filling: float = 0.0) -> Value:
    """The answer of a model with so many labels."""
    return Value.of(Outputs({"logits": np.full((1, numbers), filling, np.float32)}), 0)


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


SMALL = ENTRY_BYTES + value().nbytes


def test_what_was_used_last_stays() -> None:
    memory = Memory(3 * SMALL)
    kept = [value() for _ in range(4)]
    for number in range(3):
        memory.store(key(number), kept[number])
    assert memory.lookup([key(0)]) == [kept[0]]
    memory.store(key(3), kept[3])
    assert memory.lookup([key(n) for n in range(4)]) == [kept[0], None, kept[2], kept[3]]


def test_one_byte_too_little_holds_one_less() -> None:
    for most, held in ((2 * SMALL, 2), (2 * SMALL - 1, 1)):
        memory = Memory(most)
        for number in range(5):
            memory.store(key(number), value())
        assert len(memory) == held
        assert memory.bytes == held * SMALL


def test_what_never_fits_pushes_nothing_out() -> None:
    memory = Memory(2 * SMALL)
    memory.store(key(0), value())
    memory.store(key(1), value(100_000))
    assert memory.lookup([key(0), key(1)])[0] is not None
    assert len(memory) == 1
    memory.store(key(0), value(100_000))
    assert (len(memory), memory.bytes) == (0, 0)


def test_no_key_is_no_answer() -> None:
    memory = Memory(10 * SMALL)
    memory.store(key(0), value())
    found = memory.lookup([None, key(0), key(1), key(0)])
    assert [one is not None for one in found] == [False, True, False, True]


@given(
    st.integers(0, 12 * SMALL),
    st.lists(
        st.one_of(
            st.tuples(st.just("store"), st.integers(0, 5), st.integers(0, 600)),
            st.tuples(st.just("lookup"), st.integers(0, 5), st.integers(0, 5)),
        ),
        max_size=40,
    ),
)
def test_it_is_a_table_of_the_last_used_that_fit(
    most: int, steps: list[tuple[str, int, int]]
) -> None:
    memory, model = Memory(most), OrderedDict[int, Value]()
    for what, number, other in steps:
        if what == "store":
            stored = value(other)
            model.pop(number, None)
            if ENTRY_BYTES + stored.nbytes <= most:
                model[number] = stored
            while sum(ENTRY_BYTES + one.nbytes for one in model.values()) > most:
                model.popitem(last=False)
            memory.store(key(number), stored)
        else:
            asked = [number, other]
            assert memory.lookup([key(n) for n in asked]) == [model.get(n) for n in asked]
            for n in asked:
                if n in model:
                    model.move_to_end(n)
        assert memory.bytes == sum(ENTRY_BYTES + one.nbytes for one in model.values())
        assert len(memory) == len(model)
        assert memory.bytes <= most


@pytest.mark.parametrize("numbers", [2, 3, 200, 384, 1024, 4096])
@pytest.mark.parametrize("entries", [1000, 1500])
def test_the_bytes_counted_are_those_of_the_process(numbers: int, entries: int) -> None:
    memory = Memory(2**30)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(entries):
            kept = value(numbers, number)
            memory.store(os.urandom(32), kept)
            # As an answer that was given again.
            assert kept.scored(multi_label=False).batch.scores.best == [0]
        gc.collect()
        real, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.8 * memory.bytes < real < 1.03 * memory.bytes


def test_strings_are_counted_too() -> None:
    def named(length: int) -> Value:
        return Value.of(Outputs({"names": np.array([["x" * length]], object)}), 0)

    assert named(5000).nbytes - named(1000).nbytes == 4000
