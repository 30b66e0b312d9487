"""The cost model learns a line from noise, never goes below nothing, and follows a change."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.cost import LEARNED_AFTER, CostModel

OBSERVED = st.lists(st.tuples(st.integers(1, 100_000), st.floats(1e-6, 10.0)), max_size=60)


def learn(
    model: CostModel, fixed: float, per_token: float, batches: int, noise: float = 0.05
) -> None:
    """Show the model batches of a device that costs so much, measured with noise."""
    rng = random.Random(7)
    for _ in range(batches):
        tokens = rng.randint(1, 2000)
        model.observe(tokens, (fixed + per_token * tokens) * rng.gauss(1.0, noise))


@pytest.mark.parametrize(
    ("fixed", "per_token"), [(0.005, 0.0001), (0.02, 0.000001), (0.00001, 0.0005)]
)
def test_the_line_is_recovered_from_noise(fixed: float, per_token: float) -> None:
    model = CostModel()
    learn(model, fixed, per_token, 200)
    for tokens in (200, 1000, 2000):
        true = fixed + per_token * tokens
        assert model.seconds(1, tokens) == pytest.approx(true, rel=0.1)


def test_the_line_is_exact_without_noise() -> None:
    model = CostModel()
    learn(model, 0.003, 0.0002, 30, noise=0.0)
    assert (model.fixed, model.per_token) == pytest.approx((0.003, 0.0002), rel=1e-6)


def test_a_device_that_becomes_slower_is_noticed() -> None:
    model = CostModel()
    learn(model, 0.001, 0.0001, 300)
    learn(model, 0.004, 0.0004, 500)
    assert model.seconds(1, 1000) == pytest.approx(0.404, rel=0.1)


@given(
    OBSERVED, st.integers(0, 50), st.integers(0, 10**6), st.integers(0, 50), st.integers(0, 10**6)
)
@settings(deadline=None)
def test_predictions_are_never_negative_and_grow_with_the_work(
    observed: list[tuple[int, float]], batches: int, tokens: int, more: int, longer: int
) -> None:
    model = CostModel()
    for count, seconds in observed:
        model.observe(count, seconds)
    assert model.fixed >= 0
    assert model.per_token >= 0
    least = model.seconds(batches, tokens)
    assert 0 <= least < float("inf")
    assert least <= model.seconds(batches + more, tokens + longer)


@given(st.integers(1, 4096), st.lists(st.floats(0.001, 1.0), min_size=1, max_size=50))
@settings(deadline=None)
def test_with_one_size_only_that_size_is_predicted(tokens: int, observed: list[float]) -> None:
    model = CostModel()
    for seconds in observed:
        model.observe(tokens, seconds)
    slack = 1e-9
    assert min(observed) - slack <= model.seconds(1, tokens) <= max(observed) + slack


def test_it_is_learned_after_enough_batches() -> None:
    model = CostModel()
    for _ in range(LEARNED_AFTER - 1):
        model.observe(10, 0.01)
    assert not model.learned
    model.observe(10, 0.01)
    assert model.learned


CURVE = [
    (size * length, 0.002 + 0.0001 * size * length) for size in (1, 8, 32) for length in (16, 256)
]


def test_a_curve_measured_before_counts_as_learned() -> None:
    model = CostModel()
    model.start_from(CURVE)
    assert model.learned
    for tokens, seconds in CURVE:
        assert model.seconds(1, tokens) == pytest.approx(seconds, rel=1e-6)


def test_no_curve_changes_nothing() -> None:
    model = CostModel()
    model.start_from([(0, 1.0), (5, 0.0)])
    assert model == CostModel()


def test_a_curve_of_one_point_is_a_height() -> None:
    model = CostModel()
    model.start_from([(100, 0.5)])
    assert model.seconds(1, 100) == pytest.approx(0.5)


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_hundred_real_batches_outweigh_the_curve(factor: float) -> None:
    model = CostModel()
    model.start_from(CURVE)
    rng = random.Random(3)
    for _ in range(100):
        # As serving has them; the curve went up to 8192 tokens.
        tokens = rng.randint(16, 512)
        model.observe(tokens, factor * (0.002 + 0.0001 * tokens))
    for tokens in (64, 256, 512):
        true = factor * (0.002 + 0.0001 * tokens)
        assert model.seconds(1, tokens) == pytest.approx(true, rel=0.15)
