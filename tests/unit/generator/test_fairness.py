"""Whose prompt goes next: the laws of the queue, over any order of comings, goings and turns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.generator.fairness import Entry, FairQueue

unhurried = settings(deadline=None)
Coming = tuple[str, int, float]
"""Identity, priority and work of an entry that begins to wait."""
Step = Coming | int | None
"""One comes; that one (of all that ever came) is given up; or the engine takes one."""
# Whole numbers: their sums are exact.
WORK = st.integers(1, 40).map(float)
COMING = st.tuples(st.sampled_from("abc"), st.sampled_from([1, 5, 9]), WORK)
STEPS = st.lists(COMING | st.integers(0, 60) | st.none(), max_size=60)
THE_REST = [None] * 61
BACKLOG = st.lists(WORK, min_size=1, max_size=16)


@dataclass
class Watched:
    """A queue, and what a reader of its laws knows of it."""

    queue: FairQueue = field(default_factory=FairQueue)
    came: list[Entry] = field(default_factory=list)
    waiting: list[Entry] = field(default_factory=list)

    def push(self, identity: str, priority: int, work: float) -> Entry:
        """Let one wait."""
        entry = Entry(identity, priority, work)
        self.queue.push(entry)
        self.came.append(entry)
        self.waiting.append(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        """Give one up, whether or not it still waits."""
        self.queue.remove(entry)
        if entry in self.waiting:
            self.waiting.remove(entry)

    def take(self) -> Entry | None:
        """The next."""
        taken = self.queue.take()
        if taken in self.waiting:
            self.waiting.remove(taken)
        return taken

    def play(self, steps: Sequence[Step]) -> Iterator[tuple[list[Entry], Entry | None]]:
        """Each turn of the engine: what waited, and what it was given."""
        for step in steps:
            if isinstance(step, tuple):
                self.push(*step)
            elif step is None:
                before = list(self.waiting)
                yield before, self.take()
            elif self.came:
                self.remove(self.came[step % len(self.came)])

    def lead(self, first: str, second: str) -> Iterator[float]:
        """Work given to one beyond the other's, while both wait; one more turn each time."""
        ahead = 0.0
        while {first, second} <= {entry.identity for entry in self.waiting}:
            taken = self.take()
            assert taken is not None
            ahead += taken.work * ((taken.identity == first) - (taken.identity == second))
            yield ahead


class TestLaws:
    @unhurried
    @given(STEPS)
    @example([("a", 5, 1.0)])
    def test_1_one_is_given_whenever_one_waits(self, steps: list[Step]) -> None:
        for waiting, taken in Watched().play([*steps, *THE_REST]):
            assert (taken is not None) == bool(waiting)

    @unhurried
    @given(STEPS)
    @example([("a", 5, 1.0), ("a", 1, 1.0)])
    def test_2_the_most_urgent_class_goes_first(self, steps: list[Step]) -> None:
        for waiting, taken in Watched().play([*steps, *THE_REST]):
            if taken is not None:
                assert taken.priority == min(entry.priority for entry in waiting)

    @unhurried
    @given(BACKLOG, BACKLOG, BACKLOG, st.randoms(use_true_random=False))
    def test_3_of_two_that_begin_together_one_entry_is_the_most_that_one_gets_ahead(
        self, first: list[float], second: list[float], third: list[float], random: object
    ) -> None:
        comings = [("a", 5, w) for w in first] + [("b", 5, w) for w in second]
        comings += [("c", 5, w) for w in third]
        random.shuffle(comings)
        watched = Watched()
        for coming in comings:
            watched.push(*coming)
        for ahead in watched.lead("a", "b"):
            assert -max(second) <= ahead <= max(first)

    @unhurried
    @given(BACKLOG, BACKLOG, st.integers(0, 15))
    @example([1.0] * 16, [1.0] * 16, 15)
    def test_3_one_that_comes_late_neither_catches_up_nor_falls_back(
        self, early: list[float], late: list[float], given_before: int
    ) -> None:
        """Between any two moments, an entry of each: what was under way counts too."""
        watched = Watched()
        for work in early:
            watched.push("a", 5, work)
        for _ in range(min(given_before, len(early) - 1)):
            watched.take()
        for work in late:
            watched.push("b", 5, work)
        leads = [0.0, *watched.lead("a", "b")]
        assert max(leads) - min(leads) <= max(early) + max(late)

    @unhurried
    @given(BACKLOG, BACKLOG, st.lists(st.integers(0, 15), max_size=12))
    @example([1.0] * 4, [1.0] * 4, [0, 1, 2])
    def test_3_what_was_given_up_is_not_held_against_what_waits(
        self, first: list[float], second: list[float], given_up: list[int]
    ) -> None:
        watched = Watched()
        ours = [watched.push("a", 5, work) for work in first]
        for work in second:
            watched.push("b", 5, work)
        for index in given_up:
            watched.remove(ours[index % len(ours)])
        most = max((entry.work for entry in ours if entry in watched.waiting), default=0.0)
        for ahead in watched.lead("a", "b"):
            assert -max(second) <= ahead <= most

    @unhurried
    @given(STEPS)
    @example([("a", 5, 2.0), ("a", 5, 1.0), 0, ("a", 5, 1.0)])
    def test_4_an_identity_is_served_in_the_order_in_which_it_came(self, steps: list[Step]) -> None:
        for waiting, taken in Watched().play([*steps, *THE_REST]):
            if taken is not None:
                of = (taken.identity, taken.priority)
                alike = [entry for entry in waiting if (entry.identity, entry.priority) == of]
                assert taken is alike[0]

    @unhurried
    @given(STEPS)
    @example([("a", 5, 1.0), 0, ("b", 5, 1.0), 0, 1, None, 1])
    def test_5_what_was_removed_or_taken_is_never_taken(self, steps: list[Step]) -> None:
        for waiting, taken in Watched().play([*steps, *THE_REST]):
            assert taken is None or taken in waiting


class TestCounts:
    @unhurried
    @given(STEPS)
    @example([("a", 5, 1.0)])
    def test_length_and_work_are_those_of_what_waits(self, steps: list[Step]) -> None:
        watched = Watched()
        for _ in watched.play([*steps, *THE_REST]):
            assert len(watched.queue) == len(watched.waiting)
            assert watched.queue.work == sum(entry.work for entry in watched.waiting)

    @unhurried
    @given(STEPS, COMING)
    @example([("a", 5, 3.0), ("a", 5, 3.0), ("b", 5, 2.0), ("b", 1, 2.0)], ("b", 5, 1.0))
    def test_what_is_said_to_be_ahead_is_what_goes_first(
        self, steps: list[Step], coming: Coming
    ) -> None:
        watched = Watched()
        for _ in watched.play(steps):
            assert len(watched.queue) == len(watched.waiting)
        identity, priority, work = coming
        said = watched.queue.ahead(identity, priority)
        newcomer = watched.push(identity, priority, work)
        before = []
        while (taken := watched.take()) is not newcomer:
            assert taken is not None
            before.append(taken.work)
        assert said == (len(before), sum(before))

    def test_what_was_given_up_is_not_held_against_what_comes_next(self) -> None:
        watched = Watched()
        watched.remove(watched.push("a", 5, 100.0))
        again = watched.push("a", 5, 1.0)
        watched.push("b", 5, 1.0)
        assert watched.take() is again
