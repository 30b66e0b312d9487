"""The memory budget: never more than its limit, whoever takes and gives back in whatever order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.memory import Budget

LIMIT = 100
STEPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, LIMIT + 5)), max_size=40
)


@given(STEPS)
@settings(deadline=None)
def test_no_more_is_held_than_the_limit_and_nothing_is_forgotten(
    steps: list[tuple[str, int | None]],
) -> None:
    budget, held = Budget(LIMIT), dict[str, int]()
    for holder, size in steps:
        if size is None:
            assert budget.give_back(holder) == (holder in held)
            held.pop(holder, None)
        else:
            fits = sum(held.values()) - held.get(holder, 0) + size <= LIMIT
            assert budget.take(holder, size) == fits
            if fits:
                held[holder] = size
        assert budget.held_bytes == sum(held.values()) <= LIMIT


@given(st.lists(st.integers(0, 2**60), max_size=9))
@settings(deadline=None)
def test_without_a_limit_everything_fits_and_is_counted(sizes: list[int]) -> None:
    budget = Budget()
    for index, size in enumerate(sizes):
        assert budget.take(("m", index), size)
    assert budget.held_bytes == sum(sizes)


def test_the_last_byte_fits_and_no_other() -> None:
    budget = Budget(LIMIT)
    assert budget.take("a", 60)
    assert budget.take("b", 40)
    assert not budget.take("c", 1)
    assert budget.take("c", 0)
    assert not Budget(LIMIT).take("a", LIMIT + 1)


def test_what_does_not_fit_changes_nothing() -> None:
    budget = Budget(LIMIT)
    assert budget.take("a", 60)
    assert budget.take("b", 30)
    assert not budget.take("a", 71)
    assert budget.held_bytes == 90
    assert budget.give_back("b")
    assert budget.take("a", 71)
    assert budget.held_bytes == 71


@pytest.mark.parametrize("limit", [0, LIMIT])
def test_nothing_is_given_back_twice(limit: int) -> None:
    budget = Budget(limit)
    assert not budget.give_back("a")
    assert budget.take("a", 0)
    assert budget.give_back("a"), "nothing is something to hold"
    assert not budget.give_back("a")


def test_budgets_share_nothing() -> None:
    assert Budget(LIMIT).take("a", LIMIT)
    assert Budget(LIMIT).held_bytes == 0
