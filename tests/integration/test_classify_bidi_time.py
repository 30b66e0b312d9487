"""ClassifyBidi and time, on both servers: timeouts, priorities, leaving, a server that ends."""

import asyncio
import time
from pathlib import Path

from google.rpc import code_pb2

from tests.harness import SOON_S, reason, soon
from tests.integration.bidi_streams import Code, errors, named, numbers, ref, rig
from tests.unit.classifier.models import number_in

EXPIRED = (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")


# Timeouts.


async def test_an_item_that_expires_has_its_own_error_and_the_stream_goes_on(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), timeout=3600)
        await r.device.entered()
        await talk.send(named(2), named(3), timeout=0.05)
        await talk.send(named(4), timeout=3600)
        assert errors((await talk.results(2)).values()) == {"2": EXPIRED, "3": EXPIRED}
        batcher = r.world.runner().batcher
        assert (batcher.counts.expired, len(batcher._scheduler)) == (2, 1)
        r.device.let_go(1)
        await talk.send(named(5), timeout=3600)
        assert numbers((await talk.rest()).values()) == {"1": 1, "4": 4, "5": 5}
        assert sorted(r.device.computed) == [1, 4, 5], "what expired in the queue is not computed"


async def test_an_item_that_expires_while_it_runs_is_answered_at_once(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), timeout=0.2)
        assert await r.device.entered() == [1]
        assert errors([await talk.result()]) == {"1": EXPIRED}
        r.device.let_go(1)
        await talk.send(named(1), named(2))
        assert numbers((await talk.rest()).values()) == {"1": 1, "2": 2}


async def test_a_timeout_is_of_its_own_message_only(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), timeout=0.1)
        await talk.send(named(2))  # has the default, which is long
        assert errors([await talk.result()]) == {"1": EXPIRED}
        assert r.world.runner().batcher.counts.pending == 1
        r.device.let_go(1)
        assert numbers((await talk.rest()).values()) == {"2": 2}


async def test_the_servers_default_is_for_items_and_not_for_the_stream(
    transport: str, tmp_path: Path
) -> None:
    """A stream without a deadline outlives it several times; items without a timeout get it."""
    async with rig(transport, tmp_path, default_timeout_s=0.3) as r:
        started = time.monotonic()
        r.device.hold(1)
        talk = r.talk()
        for _ in range(3):
            await talk.send(named(1), named(2))
            sent = time.monotonic()
            assert errors((await talk.results(2)).values()) == {"1": EXPIRED, "2": EXPIRED}
            assert time.monotonic() - sent < SOON_S / 2
            await talk.send(named(3), timeout=3600)
            await r.until(lambda: r.world.runner().batcher.counts.pending == 1)
            r.device.let_go()
            assert numbers([await talk.result()]) == {"3": 3}
            r.device.hold(1)
        assert time.monotonic() - started > 0.9
        r.device.let_go()
        await talk.send(named(4), timeout=3600)
        assert numbers((await talk.rest()).values()) == {"4": 4}


async def test_the_deadline_of_the_stream_bounds_its_items(transport: str, tmp_path: Path) -> None:
    """Seen by the order of the queue: the earlier deadline goes first, whosever it is."""
    async with rig(transport, tmp_path) as r:
        r.one_by_one()
        r.device.hold(0)
        free, bound = r.talk(), r.talk(timeout=600)
        await free.send(named(0), timeout=3600)
        await r.device.entered()
        for talk, number, timeout_s in ((free, 1, 900), (bound, 2, 3600), (free, 3, 300)):
            await talk.send(named(number), timeout=timeout_s)
            await r.submitted(number + 1)
        r.device.let_go(0)
        await asyncio.gather(free.results(3), bound.results(1))
        assert r.device.computed == [0, 3, 2, 1]
        assert await free.rest() == await bound.rest() == {}


async def test_the_deadline_of_the_stream_ends_it_and_frees_the_queue(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(1)
        talk = r.talk(timeout=0.5)
        await talk.send(named(1), timeout=3600)
        await r.device.entered()
        await talk.send(named(2), named(3), timeout=3600)
        error = await talk.failure()
        assert error.code() is Code.DEADLINE_EXCEEDED
        runner = r.world.runner()
        await r.until(lambda: not runner.batcher.counts.pending)
        assert (runner.admission.items, len(runner.batcher._scheduler)) == (0, 0)
        r.device.let_go(1)
        await r.served.idle()
        after = r.talk()
        await after.send(named(4))
        assert numbers((await after.rest()).values()) == {"4": 4}
        assert r.device.computed == [1, 4]


# Priorities.


async def test_each_message_has_its_own_priority(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.one_by_one()
        r.device.hold(0)
        talk = r.talk()
        await talk.send(named(0), timeout=60)
        await r.device.entered()
        for number, priority in enumerate((0, 9, 1, 5, 0, 4), 1):
            await talk.send(named(number), timeout=60, priority=priority)
            await r.submitted(number + 1)
        r.device.let_go(0)
        assert len(await talk.rest()) == 7
        assert r.device.computed == [0, 3, 6, 1, 4, 5, 2], "0 is the default, 5"


async def test_an_urgent_message_overtakes_what_waits_on_other_streams(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path, batching={"max_batch_size": 4}) as r:
        r.device.hold(0)
        patient, urgent = r.talk(), r.talk(r.served.open())
        await patient.send(named(0))
        await r.device.entered()
        await patient.send(*(named(n) for n in range(1, 41)))
        await r.submitted(41)
        await urgent.send(named(99), priority=1)
        await r.submitted(42)
        r.device.let_go(0)
        assert numbers((await urgent.rest()).values()) == {"99": 99}
        assert len(await patient.rest()) == 41
        assert 99 in r.device.batches[1]


# Leaving.


async def test_who_leaves_frees_the_queue_at_once(transport: str, tmp_path: Path) -> None:
    """While the device still computes: nothing of it is waited for, nothing more is computed."""
    async with rig(transport, tmp_path) as r:
        r.one_by_one()
        runner = r.world.runner()
        r.device.hold(0)
        talk, kept = r.talk(), r.talk(r.served.open())
        await talk.send(*(named(n) for n in range(30)))
        assert await r.device.entered() == [0]
        await kept.send(named(100))
        await talk.send(*(named(n) for n in range(30, 50)))
        await r.submitted(51)
        assert runner.admission.items == 51
        talk.call.cancel()
        await r.until(lambda: runner.admission.items == 1)
        counts = runner.batcher.counts
        assert (counts.cancelled, counts.pending, len(runner.batcher._scheduler)) == (50, 1, 1)
        await r.until(lambda: r.served.server.interceptor.in_flight == 1)
        r.device.let_go(0)
        assert numbers((await kept.rest()).values()) == {"100": 100}
        assert r.device.computed == [0, 100]
        assert counts.submitted == counts.completed + counts.cancelled
        await r.served.idle()


async def test_a_connection_that_is_lost_frees_the_queue(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        runner = r.world.runner()
        r.device.hold(0)
        channel = r.served.open()
        talk = r.talk(channel)
        await talk.send(named(0))
        await r.device.entered()
        await talk.send(*(named(n) for n in range(1, 20)))
        await r.submitted(20)
        await channel.close()
        await r.until(lambda: runner.admission.items == 0)
        await r.served.idle()
        r.device.let_go(0)
        await r.until(lambda: not any(w.running for w in runner.batcher._workers))
        assert r.device.computed == [0]


# The end of a server.


async def test_a_drain_answers_what_was_read_and_then_says_why_it_ends(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path, linger=True) as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), named(2))
        await r.device.entered()
        await talk.send(named(3), named(4))
        await r.submitted(4)
        drained = asyncio.ensure_future(r.served.server.drain())
        await r.until(lambda: r.world.traffic.draining)
        for number in range(5, 10):
            await talk.send(named(number))  # too late: not read
        assert not talk.call.done()
        r.device.let_go(1)
        error = await talk.failure()
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "DRAINING")
        results = [one for message in talk.messages for one in message]
        assert numbers(results) == {"1": 1, "2": 2, "3": 3, "4": 4}
        assert r.world.runner().batcher.counts.submitted == 4
        await soon(drained)


async def test_a_drain_ends_idle_streams_at_once(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, linger=True) as r:
        r.device.hold(1)
        busy, fresh, used = r.talk(), r.talk(), r.talk()
        await busy.send(named(1))
        await r.device.entered()
        await used.send(named(2), model=ref("m"), timeout=3600)
        await r.submitted(2)
        await r.until(lambda: r.served.server.interceptor.in_flight == 3)
        r.device.let_go(1)
        assert numbers([await used.result()]) == {"2": 2}
        assert await r.device.entered() == [2]
        r.device.hold(3)
        await busy.send(named(3))
        assert await r.device.entered() == [3]
        drained = asyncio.ensure_future(r.served.server.drain())
        for idle in (fresh, used):
            error = await idle.failure()
            assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "DRAINING")
        assert not busy.call.done()
        refused = await r.talk().failure()
        assert (refused.code(), reason(refused)) == (Code.UNAVAILABLE, "DRAINING")
        r.device.let_go(3)
        error = await busy.failure()
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "DRAINING")
        results = [one for message in busy.messages for one in message]
        assert [number_in(one.result) for one in results] == [1, 3]
        await soon(drained)


async def test_a_drain_lets_a_caller_that_has_said_all_end_well(
    transport: str, tmp_path: Path
) -> None:
    """It is like a unary call: accepted whole, answered whole."""
    async with rig(transport, tmp_path, linger=True) as r:
        r.device.hold(1)
        talk = r.talk()
        await talk.send(named(1), named(2))
        await r.device.entered()
        rest = asyncio.ensure_future(talk.rest())
        (conversation,) = r.world.traffic.streams
        await r.until(lambda: conversation._reader.done())
        drained = asyncio.ensure_future(r.served.server.drain())
        await r.until(lambda: r.world.traffic.draining)
        r.device.let_go(1)
        assert numbers((await soon(rest)).values()) == {"1": 1, "2": 2}
        await soon(drained)
