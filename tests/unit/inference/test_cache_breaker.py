"""The breaker: how often a server that is away is asked, whatever is reported when."""

from hypothesis import given
from hypothesis import strategies as st

from services.inference.cache.breaker import PAUSE_S, Breaker


def test_after_a_failure_one_asks_once_in_every_pause() -> None:
    breaker = Breaker()
    assert breaker.well
    assert [breaker.allows(10.0) for _ in range(3)] == [True] * 3
    assert breaker.failed(10.0)
    assert not breaker.well
    assert not breaker.allows(10.0 + 0.99 * PAUSE_S)
    assert [breaker.allows(10.0 + PAUSE_S) for _ in range(3)] == [True, False, False]
    assert not breaker.failed(10.5 + PAUSE_S), "it is known"
    assert not breaker.allows(10.0 + 1.99 * PAUSE_S)
    assert breaker.allows(10.0 + 2 * PAUSE_S)
    assert breaker.succeeded()
    assert not breaker.succeeded(), "it is known"
    assert [breaker.allows(10.0 + 2 * PAUSE_S) for _ in range(3)] == [True] * 3


STEP = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "failed", "succeeded"]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


@given(st.lists(STEP, max_size=60))
def test_whoever_is_asked_and_never_reports_blocks_nobody_for_long(
    steps: list[tuple[str, float]],
) -> None:
    breaker, now, well, asked = Breaker(), 0.0, True, 0.0
    for what, seconds in steps:
        now += seconds
        if what == "ask":
            allowed = breaker.allows(now)
            assert allowed == (well or now >= asked + PAUSE_S)
            if allowed:
                asked = now
        elif what == "failed":
            assert breaker.failed(now) == well
            asked = now if well else asked
            well = False
        else:
            assert breaker.succeeded() != well
            well = True
        assert breaker.well == well
