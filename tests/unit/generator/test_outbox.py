"""What waits to be sent: whole whatever the reader's pace, bounded, and ended in order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.generator.outbox import Delta, Outbox
from services.runtime.errors import SlowConsumer
from tests.harness import soon

ROOMY = 10**6
# What each writer says, with the turns that it lets others have before each.
SAID = st.lists(st.tuples(st.text("ab", max_size=3), st.integers(0, 3)), max_size=8)
PACE = st.lists(st.integers(0, 5), max_size=12)


def delta(index: int, text: str, first: int = 0) -> Delta:
    """A token for each character, numbered from `first`."""
    ids = tuple(range(first, first + len(text)))
    return Delta(index, text, ids, tuple(-float(i) for i in ids), tuple(((i, 0.5),) for i in ids))


async def turns(count: int) -> None:
    """Let others run so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def write(outbox: Outbox, index: int, said: Sequence[tuple[str, int]]) -> None:
    """One writer's work from beginning to end."""
    first = 0
    for text, wait in said:
        await turns(wait)
        outbox.put(delta(index, text, first))
        first += len(text)
    outbox.end()


async def read(outbox: Outbox, pace: Sequence[int]) -> AsyncIterator[list[Delta]]:
    """What comes, with so many turns for others before each look."""
    waits = iter(pace)
    while True:
        await turns(next(waits, 0))
        deltas = await outbox.take()
        if not deltas:
            return
        yield deltas


class TestReading:
    @given(st.lists(SAID, min_size=1, max_size=3), PACE)
    @settings(max_examples=100, deadline=None)
    async def test_whatever_the_readers_pace_deltas_join_to_what_was_put(
        self, writers: list[list[tuple[str, int]]], pace: list[int]
    ) -> None:
        outbox = Outbox(len(writers), ROOMY)
        tasks = [asyncio.create_task(write(outbox, i, said)) for i, said in enumerate(writers)]
        got = {i: delta(i, "") for i in range(len(writers))}
        async with asyncio.timeout(20):
            async for deltas in read(outbox, pace):
                assert [one.index for one in deltas] == sorted({one.index for one in deltas})
                for one in deltas:
                    whole = got[one.index]
                    whole.text += one.text
                    whole.ids += one.ids
                    whole.logprobs += one.logprobs
                    whole.top += one.top
        await asyncio.gather(*tasks)
        for index, said in enumerate(writers):
            assert got[index] == delta(index, "".join(text for text, _ in said))

    async def test_what_came_since_the_last_look_is_one_delta_a_choice_in_their_order(self) -> None:
        outbox = Outbox(2, ROOMY)
        outbox.put(delta(1, "x"))
        outbox.put(delta(0, "ab"))
        outbox.put(delta(1, "yz", 1))
        assert await soon(outbox.take()) == [delta(0, "ab"), delta(1, "xyz")]

    async def test_what_was_given_is_left_alone(self) -> None:
        outbox = Outbox(1, ROOMY)
        outbox.put(delta(0, "a"))
        (given,) = await soon(outbox.take())
        outbox.put(delta(0, "b", 1))
        assert given == delta(0, "a")

    async def test_a_reader_waits_for_what_comes(self) -> None:
        outbox = Outbox(1, ROOMY)
        taking = asyncio.create_task(outbox.take())
        await turns(5)
        assert not taking.done()
        outbox.put(delta(0, "a"))
        assert await soon(taking) == [delta(0, "a")]


class TestBound:
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 12))
    @settings(deadline=None)
    def test_a_reader_that_is_too_far_behind_ends_the_writer_and_no_other_does(
        self, sizes: list[int], most: int
    ) -> None:
        outbox, unread = Outbox(2, most), 0
        for count, size in enumerate(sizes):
            unread += size
            if unread > most:
                with pytest.raises(SlowConsumer, match=str(unread)):
                    outbox.put(delta(count % 2, "a" * size))
                return
            outbox.put(delta(count % 2, "a" * size))

    async def test_what_was_read_does_not_count(self) -> None:
        outbox = Outbox(1, 3)
        for _ in range(5):
            outbox.put(delta(0, "abc"))
            assert await soon(outbox.take()) == [delta(0, "abc")]


class TestEnds:
    async def test_it_ends_when_all_writers_have(self) -> None:
        outbox = Outbox(2, ROOMY)
        taking = asyncio.create_task(outbox.take())
        outbox.end()
        await turns(5)
        assert not taking.done()
        outbox.end()
        assert await soon(taking) == []
        assert await soon(outbox.take()) == []

    async def test_what_was_put_before_the_end_comes_before_it(self) -> None:
        outbox = Outbox(1, ROOMY)
        outbox.put(delta(0, "a"))
        outbox.end()
        assert [await soon(outbox.take()), await soon(outbox.take())] == [[delta(0, "a")], []]

    async def test_an_error_comes_after_what_was_put_before_it(self) -> None:
        outbox, error = Outbox(2, ROOMY), ValueError("broken")
        outbox.put(delta(0, "a"))
        outbox.end(error)
        assert await soon(outbox.take()) == [delta(0, "a")]
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                await soon(outbox.take())

    async def test_the_first_error_is_the_one_that_is_told(self) -> None:
        outbox = Outbox(3, ROOMY)
        outbox.end(ValueError("first"))
        outbox.fail(ValueError("second"))
        outbox.end(ValueError("third"))
        with pytest.raises(ValueError, match="first"):
            await soon(outbox.take())

    async def test_the_error_of_the_last_writer_is_told_too(self) -> None:
        outbox = Outbox(1, ROOMY)
        outbox.end(ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            await soon(outbox.take())

    async def test_a_reader_that_waits_is_told_of_a_failure_at_once(self) -> None:
        outbox = Outbox(1, ROOMY)
        taking = asyncio.create_task(outbox.take())
        await turns(2)
        outbox.fail(ValueError("late"))
        with pytest.raises(ValueError, match="late"):
            await soon(taking)

    @pytest.mark.parametrize("end", [Outbox.fail, Outbox.end])
    async def test_no_writer_puts_off_the_end_of_a_stream_that_failed(
        self, end: Callable[[Outbox, BaseException], None]
    ) -> None:
        outbox = Outbox(2, ROOMY)
        outbox.put(delta(0, "a"))
        end(outbox, ValueError("late"))
        assert await soon(outbox.take()) == [delta(0, "a")]
        outbox.put(delta(0, "b", 1))
        with pytest.raises(ValueError, match="late"):
            await soon(outbox.take())
