"""A small model of the registry, and the check that a recorded history is one that it allows.

The history that the registry tells gives the order of all writes. What clients did, and when, must
fit into it: nothing acknowledged is missing, nothing is there twice, nothing is seen too early or
too late. Knows no wire: resources are mappings of fields, one of them `etag`.
"""

import heapq
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

State = Mapping[str, Any]
"""The fields of a resource."""
PRESENT = object()
"""Asked of a field: it has some value. None asks that it has none."""


class Outcome(Enum):
    """What a client knows of a call that ended."""

    OK = "ok"
    REFUSED = "refused"
    """Definitely not carried out."""
    UNKNOWN = "unknown"
    """Carried out or not."""


class Saw(Enum):
    """What a call tells of the resource `about` at one moment while it ran."""

    NOTHING = "nothing"
    STATE = "state"
    """Exactly its answer; None is that it does not exist."""
    EXISTING = "existing"
    OTHER_ETAG = "other etag"


@dataclass(frozen=True)
class Change:
    """One change as the history has it."""

    revision: int
    name: str
    call: str
    before: State | None
    after: State | None


@dataclass(frozen=True)
class Attempt:
    """One call of one client: a write, or with `reads` a read."""

    call: str
    name: str
    """The resource; of a version to be, what its name begins with, up to the last slash."""
    start: float
    end: float
    outcome: Outcome
    request: str = ""
    """Its request id, the same for each repetition."""
    etag: str = ""
    """What the etag had to be; empty: anything."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the resource has afterwards."""
    gone: bool = False
    """The resource does not exist afterwards."""
    answer: State | None = None
    saw: Saw = Saw.NOTHING
    about: str = ""
    reads: bool = False


@dataclass(frozen=True)
class Objection:
    """What is wrong, and by which rule."""

    rule: str
    text: str


@dataclass(frozen=True)
class Recorded:
    """All that is known of a run."""

    revision: int
    """Before the run."""
    first: Mapping[str, State]
    """All resources at that revision."""
    history: Sequence[Change]
    attempts: Sequence[Attempt]
    last: Mapping[str, State]
    """All resources as they were read at the end."""


def check(run: Recorded) -> list[Objection]:
    """What about a run cannot be; empty where the model allows it."""
    return [*_History(run.revision, run.first, run.history, run.last).check(), *_Calls(run).check()]


@dataclass(frozen=True)
class _History:
    """The rules of the history alone."""

    revision: int
    first: Mapping[str, State]
    changes: Sequence[Change]
    last: Mapping[str, State]

    def check(self) -> Iterator[Objection]:
        states = dict(self.first)
        etags = {state["etag"] for state in states.values()}
        for expected, change in enumerate(self.changes, self.revision + 1):
            if change.revision != expected:
                yield Objection("gap", f"revision {change.revision} where {expected} comes next")
            yield from self._step(change, states, etags)
        for name in sorted(states.keys() | self.last.keys()):
            if states.get(name) != self.last.get(name):
                said = f"{name} is {self.last.get(name)}, by the history {states.get(name)}"
                yield Objection("final", said)

    def _step(
        self, change: Change, states: dict[str, State], etags: set[str]
    ) -> Iterator[Objection]:
        present = states.pop(change.name, None)
        if change.before != present:
            said = f"{change.name} was {present}, revision {change.revision} says {change.before}"
            yield Objection("chain", said)
        if change.after is None:
            return
        states[change.name] = change.after
        if change.after["etag"] in etags:
            yield Objection("etag again", f"revision {change.revision} has an etag of before")
        etags.add(change.after["etag"])


class _Timeline:
    """What each resource was after each step; a step is all that one call changed at once."""

    def __init__(self, first: Mapping[str, State], history: Sequence[Change]) -> None:
        self.last = 0
        self._steps: dict[str, list[int]] = defaultdict(lambda: [0])
        self._states: dict[str, list[State | None]] = {}
        self._first = first
        self.blocks: dict[str, list[list[Change]]] = defaultdict(list)
        """The changes of each call, in one list for each of its steps."""
        self.at: dict[str, list[int]] = defaultdict(list)
        previous = None
        for change in history:
            if previous is None or previous.call != change.call:
                self.last += 1
                self.blocks[change.call].append([])
                self.at[change.call].append(self.last)
            self.blocks[change.call][-1].append(change)
            self._note(change)
            previous = change

    def _note(self, change: Change) -> None:
        states = self._states.setdefault(change.name, [self._first.get(change.name)])
        steps = self._steps[change.name]
        if steps[-1] == self.last:
            states[-1] = change.after
        else:
            steps.append(self.last)
            states.append(change.after)

    def soonest(self, name: str, step: int, holds: Callable[[State | None], bool]) -> int | None:
        """The first step from `step` on after which this held; None where there is none."""
        steps = self._steps[name]
        states = self._states.get(name, [self._first.get(name)])
        for index in range(bisect_right(steps, step) - 1, len(steps)):
            if holds(states[index]):
                return max(step, steps[index])
        return None


@dataclass(frozen=True)
class _Point:
    """A call that has its place in the order: a fixed one, or any at which something held."""

    start: float
    end: float
    said: str
    rule: str = "read"
    step: int = 0
    """0: not fixed."""
    name: str = ""
    holds: Callable[[State | None], bool] = bool


class _Calls:
    """The rules of what clients did."""

    def __init__(self, run: Recorded) -> None:
        self._time = _Timeline(run.first, run.history)
        self._attempts = run.attempts
        self._changes = run.history
        self._requests: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in run.attempts:
            self._requests[attempt.request or attempt.call].append(attempt)

    def check(self) -> Iterator[Objection]:
        writers = {attempt.call for attempt in self._attempts if not attempt.reads}
        for change in self._changes:
            if change.call not in writers:
                yield Objection("stranger", f"nobody asked for revision {change.revision}")
        points: list[_Point] = []
        for attempts in self._requests.values():
            yield from self._request(attempts, points)
        yield from _ordered(points, self._time)

    def _request(self, attempts: list[Attempt], points: list[_Point]) -> Iterator[Objection]:
        """The attempts under one request id: at most one of them changed something."""
        made = [attempt for attempt in attempts if attempt.call in self._time.blocks]
        if len(made) > 1 or any(len(self._time.blocks[one.call]) > 1 for one in made):
            yield Objection("twice", f"{attempts[0]} was carried out twice")
            return
        if made:
            yield from self._carried_out(made[0], attempts, points)
        for attempt in attempts:
            points += _seen(attempt)
            if attempt.outcome is Outcome.REFUSED and made:
                yield Objection("trace", f"{attempt} was refused, and is in the history")
            if attempt.outcome is Outcome.OK and not made and not attempt.reads:
                yield from _unchanged(attempt, attempts[0].start, points)

    def _carried_out(
        self, maker: Attempt, attempts: list[Attempt], points: list[_Point]
    ) -> Iterator[Objection]:
        (changes,) = self._time.blocks[maker.call]
        (step,) = self._time.at[maker.call]
        acknowledged = [one for one in attempts if one.outcome is Outcome.OK]
        end = min((one.end for one in acknowledged), default=math.inf)
        points.append(_Point(maker.start, end, str(maker), step=step))
        main = [change for change in changes if _is_of(change.name, maker.name)]
        if len(main) != 1:
            yield Objection("twice", f"{maker} changed its resource {len(main)} times")
            return
        (change,) = main
        if maker.etag and (change.before is None or change.before["etag"] != maker.etag):
            yield Objection("stale", f"{maker} had an old etag, revision {change.revision} came")
        if not _as_asked(maker, change.after):
            yield Objection("asked", f"{maker} became {change.after}")
        for one in acknowledged:
            if not one.gone and one.answer != change.after:
                yield Objection("answer", f"{one} was answered another state than {change.after}")


def _unchanged(attempt: Attempt, start: float, points: list[_Point]) -> Iterator[Objection]:
    """A write that was acknowledged and is not in the history: all was as asked already."""
    answer = attempt.answer
    if attempt.gone or answer is None or not _as_asked(attempt, answer):
        yield Objection("lost", f"{attempt} was acknowledged and is not in the history")
        return
    if attempt.etag not in ("", answer["etag"]):
        yield Objection("stale", f"{attempt} was acknowledged with an old etag")
    points.append(
        _Point(
            start,
            attempt.end,
            str(attempt),
            "lost",
            name=answer["name"],
            holds=lambda state: state == answer,
        )
    )


def _seen(attempt: Attempt) -> Iterator[_Point]:
    """What an attempt tells of a resource, where it tells something."""
    checks: dict[Saw, Callable[[State | None], bool]] = {
        Saw.STATE: lambda state: state == attempt.answer,
        Saw.EXISTING: lambda state: state is not None,
        Saw.OTHER_ETAG: lambda state: state is None or state["etag"] != attempt.etag,
    }
    if attempt.saw is not Saw.NOTHING and attempt.outcome is not Outcome.UNKNOWN:
        name = attempt.about or attempt.name
        holds = checks[attempt.saw]
        yield _Point(attempt.start, attempt.end, str(attempt), name=name, holds=holds)


def _ordered(points: Iterable[_Point], time: _Timeline) -> Iterator[Objection]:
    """Whether all calls fit into one order that keeps to real time.

    Each takes the first place that it can have after all that ended before it began: if there is an
    order, this finds one.
    """
    ended: list[tuple[float, int, str]] = []
    floor, below = 0, ""
    for point in sorted(points, key=lambda one: one.start):
        while ended and ended[0][0] < point.start:
            _, step, said = heapq.heappop(ended)
            floor, below = max((floor, below), (step, said))
        if point.step:
            if point.step <= floor:
                said = f"{point.said} came at step {point.step}, after {below} at {floor}"
                yield Objection("order", said)
            heapq.heappush(ended, (point.end, point.step, point.said))
            continue
        found = time.soonest(point.name, floor, point.holds)
        if found is None:
            yield Objection(point.rule, f"{point.said} was not so at step {floor} or later")
        else:
            heapq.heappush(ended, (point.end, found, point.said))


def _as_asked(attempt: Attempt, state: State | None) -> bool:
    if state is None or attempt.gone:
        return attempt.gone and state is None
    for name, value in attempt.asked.items():
        if value is PRESENT:
            if name not in state:
                return False
        elif state.get(name) != value:
            return False
    return True


def _is_of(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith("/") else name == wanted
