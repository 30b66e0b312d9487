"""The checker of recorded histories: it objects to each thing that may not be, and to nothing else.

Each test doctors one run in which two callers worked on one alias.
"""

from dataclasses import replace
from typing import Any

import pytest

from tests.integration.registry_model import (
    PRESENT,
    Attempt,
    Change,
    Outcome,
    Recorded,
    Saw,
    State,
    check,
)

NAME = "models/m/aliases/live"
OTHER = "models/m"
VERSION = "models/m/versions/1"


def state(etag: str, version: int = 0, name: str = NAME) -> State:
    """A state of the alias."""
    return {"name": name, "etag": etag, "version": version}


FIRST = {NAME: state("e0"), OTHER: state("m0", name=OTHER)}
HISTORY = (
    Change(8, NAME, "a", state("e0"), state("e1", 1)),
    Change(9, NAME, "b", state("e1", 1), state("e2", 2)),
    Change(10, VERSION, "c", None, state("v1", 1, VERSION)),
    Change(11, OTHER, "c", state("m0", name=OTHER), state("m1", 1, OTHER)),
    Change(12, NAME, "d", state("e2", 2), None),
)
LAST = {OTHER: state("m1", 1, OTHER), VERSION: state("v1", 1, VERSION)}


def attempt(call: str, start: float, end: float, **fields: Any) -> Attempt:
    """A call that was answered."""
    given: dict[str, Any] = {"name": NAME, "outcome": Outcome.OK, **fields}
    return Attempt(call=call, start=start, end=end, **given)


A = attempt("a", 0, 10, etag="e0", asked={"version": 1}, answer=state("e1", 1), request="ra")
READ = attempt("r", 11, 12, reads=True, saw=Saw.STATE, answer=state("e1", 1))
B = attempt("b", 13, 20, etag="e1", asked={"etag": PRESENT, "no": None}, answer=state("e2", 2))
C = attempt("c", 15, 30, name="models/m/versions/", answer=state("v1", 1, VERSION), request="rc")
D = attempt("d", 40, 50, gone=True, etag="e2")
NONE = attempt("n", 51, 52, outcome=Outcome.REFUSED, saw=Saw.STATE, about=NAME)
STALE = attempt("s", 21, 29, outcome=Outcome.REFUSED, etag="e1", saw=Saw.OTHER_ETAG)
CALLS = (A, READ, B, C, STALE, D, NONE)
RUN = Recorded(7, FIRST, HISTORY, CALLS, LAST)


def rules(**changed: Any) -> set[str]:
    """What the checker objects to in a doctored run."""
    return {one.rule for one in check(replace(RUN, **changed))}


def doctored(was: Attempt, *others: Attempt, **fields: Any) -> tuple[Attempt, ...]:
    """The calls with one of them told otherwise, and more of them."""
    return (*(replace(one, **fields) if one == was else one for one in CALLS), *others)


def swapped(index: int, **fields: Any) -> tuple[Change, ...]:
    """The history with one change told otherwise."""
    return (*HISTORY[:index], replace(HISTORY[index], **fields), *HISTORY[index + 1 :])


def numbered(*changes: Change) -> tuple[Change, ...]:
    """A history whose revisions and states follow on each other, whatever is in it."""
    states: dict[str, State | None] = dict(FIRST)
    found = []
    for revision, change in enumerate(changes, 8):
        found.append(replace(change, revision=revision, before=states.get(change.name)))
        states[change.name] = change.after
    return tuple(found)


def test_a_run_in_order_is_allowed() -> None:
    assert check(RUN) == []


def test_an_unknown_outcome_may_be_in_the_history_or_not() -> None:
    assert not rules(attempts=doctored(D, outcome=Outcome.UNKNOWN))
    never = attempt("x", 14, 15, outcome=Outcome.UNKNOWN, request="rx")
    assert not rules(attempts=(*CALLS, never))
    unread = replace(READ, call="u", outcome=Outcome.UNKNOWN, answer=None)
    assert not rules(attempts=(*CALLS, unread))


def test_a_lost_write() -> None:
    without = numbered(*HISTORY[:1], *HISTORY[2:])
    assert "lost" in rules(history=without)
    assert "lost" in rules(history=HISTORY[:-1], last={**LAST, NAME: state("e2", 2)})


def test_a_write_that_is_lost_from_the_state_alone() -> None:
    assert rules(last={**LAST, VERSION: state("v0", 1, VERSION)}) == {"final"}
    assert rules(last={OTHER: LAST[OTHER]}) == {"final"}


def test_a_write_carried_out_twice() -> None:
    again = Change(0, NAME, "a", None, state("e9", 1))
    assert "twice" in rules(history=numbered(*HISTORY[:2], again, *HISTORY[2:]))


def test_a_repeated_request_id_carried_out_twice() -> None:
    again = replace(A, call="a2", start=13, end=60)
    twice = Change(0, NAME, "a2", None, state("e9", 1))
    history = numbered(*HISTORY[:2], twice, *HISTORY[2:])
    assert "twice" in rules(history=history, attempts=(*CALLS, again))


def test_a_repeated_request_id_is_answered_as_the_first_time() -> None:
    again = replace(A, call="a2", start=45, end=60)
    assert not rules(attempts=(*CALLS, again))
    assert rules(attempts=(*CALLS, replace(again, answer=state("e2", 2)))) == {"answer"}
    refused = replace(again, outcome=Outcome.REFUSED, answer=None)
    assert rules(attempts=(*CALLS, refused)) == {"trace"}


def test_two_writes_in_another_order_than_they_were_made() -> None:
    apart = doctored(C, start=3, end=5)
    assert "order" in rules(attempts=apart)


def test_an_unknown_write_may_come_late_but_not_before_it_began() -> None:
    late = doctored(C, start=0, end=1, outcome=Outcome.UNKNOWN)
    assert not rules(attempts=late)
    early = doctored(A, start=14, outcome=Outcome.UNKNOWN, end=16)
    assert "order" in rules(attempts=early)


def test_an_old_etag_that_was_accepted() -> None:
    assert rules(attempts=doctored(B, etag="e0")) == {"stale"}
    assert rules(attempts=doctored(C, etag="e0")) == {"stale"}


def test_an_etag_refused_although_it_held() -> None:
    assert rules(attempts=doctored(STALE, etag="e2")) == {"order"}
    assert rules(attempts=(*CALLS, replace(STALE, call="t", etag="e2", end=99))) == set()


def test_a_broken_chain() -> None:
    assert "chain" in rules(history=swapped(1, before=state("e0")))
    assert "chain" in rules(history=swapped(2, before=state("v0", 0, VERSION)))


def test_a_gap_and_a_revision_that_comes_twice() -> None:
    assert rules(history=swapped(4, revision=13)) == {"gap"}
    assert rules(history=swapped(4, revision=11)) == {"gap"}


def test_an_etag_used_again() -> None:
    assert "etag again" in rules(history=swapped(1, after=state("e0", 2)))


def test_a_change_that_nobody_asked_for() -> None:
    assert "stranger" in rules(history=swapped(4, call="?"))


def test_a_refusal_that_left_a_trace() -> None:
    assert "trace" in rules(attempts=doctored(B, outcome=Outcome.REFUSED, answer=None))


def test_an_effect_that_was_not_asked_for() -> None:
    assert rules(attempts=doctored(A, asked={"version": 5})) == {"asked"}
    assert rules(attempts=doctored(B, asked={"etag": None})) == {"asked"}
    assert rules(attempts=doctored(B, asked={"no": PRESENT})) == {"asked"}


def test_an_answer_that_is_not_what_was_written() -> None:
    assert rules(attempts=doctored(B, answer=state("e9", 2))) == {"answer"}


@pytest.mark.parametrize(
    "fields",
    [
        {"start": 24, "end": 25},  # too late: it was overwritten
        {"answer": state("never")},
        {"answer": None},
    ],
)
def test_a_read_of_what_was_not_there_then(fields: dict[str, Any]) -> None:
    assert rules(attempts=doctored(READ, **fields)) & {"read", "order"}


def test_a_read_that_sees_the_future() -> None:
    assert "order" in rules(attempts=doctored(READ, answer=state("e2", 2)))


def test_reads_that_go_back() -> None:
    new = attempt("r2", 14, 15, reads=True, saw=Saw.STATE, answer=state("e2", 2))
    old = attempt("r3", 16, 17, reads=True, saw=Saw.STATE, answer=state("e1", 1))
    assert not rules(attempts=(*CALLS, new))
    assert not rules(attempts=(*CALLS, old))
    assert rules(attempts=(*CALLS, new, old)) == {"read"}


def test_a_read_in_the_middle_of_what_one_call_changed() -> None:
    version = attempt("r2", 16, 17, reads=True, saw=Saw.STATE, name=VERSION, about=VERSION)
    seen = replace(version, answer=state("v1", 1, VERSION))
    model = replace(version, call="r3", name=OTHER, about=OTHER, start=18, end=19)
    assert not rules(attempts=(*CALLS, seen, replace(model, answer=state("m1", 1, OTHER))))
    half = replace(model, answer=state("m0", 0, OTHER))
    assert rules(attempts=(*CALLS, seen, half)) == {"read"}


def test_a_write_that_changed_nothing() -> None:
    same = attempt("x", 21, 29, asked={"version": 2}, answer=state("e2", 2), etag="e2")
    assert not rules(attempts=(*CALLS, same))
    assert rules(attempts=(*CALLS, replace(same, asked={"version": 1}))) == {"lost"}
    assert rules(attempts=(*CALLS, replace(same, etag="e1"))) == {"stale"}
    assert rules(attempts=(*CALLS, replace(same, start=60, end=61))) == {"lost"}
    assert rules(attempts=(*CALLS, replace(same, gone=True, answer=None))) == {"lost"}


def test_a_refusal_for_a_resource_that_was_there() -> None:
    there = replace(NONE, start=21, end=29)
    assert "order" in rules(attempts=(*CALLS[:-1], there))
    exists = replace(NONE, saw=Saw.EXISTING)
    assert rules(attempts=(*CALLS[:-1], exists)) == {"read"}
