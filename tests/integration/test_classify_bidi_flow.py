"""ClassifyBidi under way, on both servers: who does not read is not read from, and nothing crosses.

What transports may hold between the two ends is their own affair: four to seven megabytes were
seen. So the answers here are large, and the bound is put far below what the caller would send.
"""

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from gristmill.classifier.v1 import options_pb2

from services.classifier.bidi import WINDOW_BYTES, WINDOW_ITEMS
from services.runtime.auth import ANONYMOUS
from services.runtime.call import Call, enter
from services.runtime.deadline import Deadline
from tests.harness import SOON_S, pb, soon
from tests.integration.bidi_streams import Rig, Talk, named, numbers, ref, rig, saying
from tests.unit.classifier.models import NUMBERS, number_in

STREAMS = 8
ITEMS = 200
SENT = 5000
LARGE = {"labels": ["a" * 4000, "b" * 4000]}
RESULT_BYTES = 8000
BETWEEN_BYTES = 16 * 2**20
ROUNDS = 100
"""Of question and answer, to see how fast a stream is."""
SLOWER = 5.0
"""A neighbour may be so much slower, and SLACK_S: other programs run on this machine too."""
SLACK_S = 0.005


async def send_without_reading(talk: Talk) -> None:
    """As fast as the server takes it; half-closes after the last."""
    every = options_pb2.ClassifyOptions(top_k=2, return_probabilities=True)
    for number in range(SENT):
        fields = {} if number else {"options": every, "timeout": 3600}
        item = named(number % NUMBERS, str(number))
        await talk.call.write(saying(item, probabilities=False, **fields))
    await talk.call.done_writing()


async def round_trips(talk: Talk) -> list[float]:
    """How long question and answer take, one after the other."""
    found = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        await talk.send(named(number))
        one = await talk.result()
        found.append(time.perf_counter() - started)
        assert number_in(one.result) == number
    return found


async def settled(rig_: Rig, neighbour: Talk) -> list[float]:
    """The neighbour's times in the first round in which nothing more of the other was read."""
    counts = rig_.world.runner("m").batcher.counts
    async with asyncio.timeout(4 * SOON_S):
        while True:
            before = counts.submitted
            times = await round_trips(neighbour)
            if counts.submitted == before > 0 and not counts.pending:
                return times


async def test_who_does_not_read_is_not_read_from_and_holds_up_nobody(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path, output=LARGE) as r:
        await r.world.add("n")
        neighbour = r.talk(r.served.open())
        await neighbour.send(named(0), model=ref("n"))
        await neighbour.result()
        alone = await round_trips(neighbour)

        stuck = r.talk(r.served.open())
        await stuck.send(named(0, "first"), model=ref("m"))
        writing = asyncio.ensure_future(send_without_reading(stuck))
        beside = await settled(r, neighbour)
        counts = r.world.runner("m").batcher.counts
        read = counts.submitted
        assert read <= 1 + WINDOW_ITEMS + BETWEEN_BYTES // RESULT_BYTES < SENT
        assert statistics.median(beside) <= SLOWER * statistics.median(alone) + SLACK_S

        ids: Counter[str] = Counter()
        async with asyncio.timeout(4 * SOON_S):
            while (response := await stuck.call.read()) is not grpc.aio.EOF:
                for one in response.results:
                    ids[one.id] += 1
                    assert number_in(one.result) == int(one.id.replace("first", "0")) % NUMBERS
        await soon(writing)
        assert ids == Counter(["first", *map(str, range(SENT))])
        assert counts.submitted == counts.completed == SENT + 1
        assert await neighbour.rest() == {}


async def test_a_message_of_any_size_is_read_while_fewer_than_the_window_are_under_way(
    transport: str, tmp_path: Path
) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.hold(0)
        talk = r.talk()
        await talk.send(named(0, "first"))
        assert await r.device.entered() == [0]
        await talk.send(*(named(n, f"b{n}") for n in range(1, WINDOW_ITEMS - 1)))
        await r.submitted(WINDOW_ITEMS - 1)
        await talk.send(*(named(n, f"c{n}") for n in range(1, 1025)))
        await r.submitted(WINDOW_ITEMS + 1023)
        await talk.send(named(1, "last"))
        other = r.talk()
        await other.send(named(7), timeout=3600, priority=1)
        await r.submitted(WINDOW_ITEMS + 1024)  # the other's; the last is not read yet
        r.device.let_go(0)
        assert numbers((await other.rest()).values()) == {"7": 7}
        found = numbers((await talk.rest()).values())
        assert found.pop("first") == 0
        assert found.pop("last") == 1
        assert len(found) == WINDOW_ITEMS - 2 + 1024
        assert all(number == int(name[1:]) for name, number in found.items())


async def test_large_messages_fill_the_window_by_their_bytes(tmp_path: Path) -> None:
    async with rig("grpcio", tmp_path) as r:
        r.device.hold(0)
        taken = 0

        async def requests() -> AsyncIterator[pb.ClassifyBidiRequest]:
            nonlocal taken
            for number in range(40):
                taken += 1
                yield saying(named(number, str(number), words=100_000))

        enter(Call("/test", "id", ANONYMOUS, Deadline.after(SOON_S)))
        answers = r.world.servicer.ClassifyBidi(requests(), None)
        first = asyncio.ensure_future(anext(answers))
        fit = -(-WINDOW_BYTES // named(0, "0", words=100_000).ByteSize())
        await r.submitted(fit)
        for _ in range(100):  # turns in which a reader without a bound would read on
            await asyncio.sleep(0)
        assert taken == fit < 40
        r.device.let_go(0)
        found = len((await soon(first)).results)
        async with aclosing(answers) as left:
            async for response in left:
                found += len(response.results)
        assert found == taken == 40


async def converse(rig_: Rig, channel: grpc.aio.Channel, seed: int, own: list[int]) -> None:
    """Send all of one's own numbers in messages of any size, read when one likes; check each."""
    rng = random.Random(seed)
    talk = rig_.talk(channel)
    models: dict[str, str] = {}
    found: dict[str, pb.BidiResult] = {}
    left = list(own)
    while left:
        size = rng.choice([1, 1, 2, 5, 17, 40])
        now, left = left[:size], left[size:]
        model = rng.choice(["m", "n"])
        models.update({str(number): model for number in now})
        items = [named(number, words=rng.choice([1, 2, 5, 30])) for number in now]
        await talk.send(*items, model=ref(model), priority=rng.choice([0, 1, 9]), timeout=3600)
        if rng.random() < 0.5:
            found |= await talk.results(rng.randint(0, len(models) - len(found)))
    found |= await talk.rest()
    assert {name: one.model for name, one in found.items()} == models
    assert numbers(found.values()) == {str(number): number for number in own}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_result_crosses_from_one_stream_to_another(
    transport: str, seed: int, tmp_path: Path
) -> None:
    """Eight streams over four connections, two models of two instances, 1,600 different numbers."""
    rng = random.Random(seed)
    everyone = rng.sample(range(NUMBERS), STREAMS * ITEMS)
    batching = {"max_batch_size": 16, "max_batch_tokens": 128, "max_overtakes": 2}
    async with rig(transport, tmp_path, "m", "n", instances=2, batching=batching) as r:
        channels = [r.served.open() for _ in range(4)]
        shares = [everyone[i::STREAMS] for i in range(STREAMS)]
        await soon(
            asyncio.gather(
                *(
                    converse(r, channels[i % 4], rng.randrange(2**32), share)
                    for i, share in enumerate(shares)
                )
            )
        )
        await r.served.idle()
        assert sorted(r.device.computed) == sorted(everyone), "each once, and nothing else"
        assert max(len(batch) for batch in r.device.batches) > 1
        for model in ("m", "n"):
            runner = r.world.runner(model)
            assert runner.batcher.counts.submitted == runner.batcher.counts.completed
            assert (runner.admission.items, runner.admission.bytes) == (0, 0)
