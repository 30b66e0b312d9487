"""Padding: each row keeps its item and ends in the input's fill."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.items import Encoded, pad

ROWS = st.lists(st.lists(st.integers(-9, 9), max_size=9), min_size=1, max_size=8)


def tokens(ids: list[int]) -> Encoded:
    """An item of token ids with their mask."""
    inputs = {
        "input_ids": np.array(ids, dtype=np.int64),
        "attention_mask": np.ones(len(ids), dtype=np.int32),
    }
    return Encoded(inputs, len(ids), tokens=len(ids))


@given(ROWS, st.integers(-3, 300))
@settings(deadline=None)
def test_each_row_is_its_item_and_then_the_fill(rows: list[list[int]], fill: int) -> None:
    batch = pad([tokens(row) for row in rows], {"input_ids": fill})
    longest = max(len(row) for row in rows)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (len(rows), longest)
    assert (ids.dtype, mask.dtype) == (np.int64, np.int32)
    for index, row in enumerate(rows):
        assert ids[index].tolist() == row + [fill] * (longest - len(row))
        assert mask[index].tolist() == [1] * len(row) + [0] * (longest - len(row))


def test_items_of_one_shape_are_stacked_as_they_are() -> None:
    images = [np.full((2, 3), value, dtype=np.float32) for value in (1, 2)]
    batch = pad([Encoded({"image": image}, 1) for image in images], {})
    assert batch["image"].shape == (2, 2, 3)
    assert [row.tolist() for row in batch["image"]] == [image.tolist() for image in images]


def test_what_an_item_takes_up_is_the_sum_of_its_arrays() -> None:
    assert tokens([1, 2, 3]).nbytes == 3 * 8 + 3 * 4


def test_what_bytes_point_to_takes_up_room_too() -> None:
    texts = np.array([b"x" * 1000, b""], dtype=np.object_)
    assert Encoded({"t": texts}, 1).nbytes == texts.nbytes + 1000
