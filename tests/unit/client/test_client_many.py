"""`classify_many`: any number of items over one stream, and over another where that is cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from gristmill_client import AsyncClient, Client, InvalidRequest, Unavailable, _many
from gristmill_client._backlog import Backlog

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_bidi import FakeBidi, answer, answered, drain, drains_after, held
from tests.unit.client.fakes import SOON_S, error_info, refuse, serving

MANY = 1500
AHEAD = 256 + 32


def test_every_item_is_answered_once(twin: Callable[..., Twin]) -> None:
    fake = FakeBidi()
    with serving(fake.register) as address:
        client = twin(classifier=address)
        texts = ["bad" if number == 7 else "x" for number in range(MANY)]
        many = client.client.classify_many(iter(texts), "sentiment", top_k=2, timeout=9)
        found = client.collect(many)
    assert sorted(index for index, _ in found) == list(range(MANY))
    assert [index for index, one in found if one.error] == [7]
    assert fake.ended.wait(SOON_S)
    assert not fake.gone.is_set(), "it ends well"
    assert fake.streams == 1
    assert {len(message.items) for message in fake.messages[:-1]} == {32}
    model, options = fake.effective["0"]
    assert (model.model, options.top_k) == ("sentiment", 2)
    assert fake.messages[0].timeout.ToTimedelta().total_seconds() == 9


def test_items_are_taken_as_results_make_room(twin: Callable[..., Twin]) -> None:
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for _ in range(MANY):
            taken += 1
            yield "x"

    with serving(FakeBidi().register) as address:
        client = twin(classifier=address)
        many = client.open(lambda: client.client.classify_many(texts()))
        assert taken == 0
        for given in range(MANY):
            client.next(many)
            assert taken <= given + AHEAD
        assert client.collect(many) == []


def test_nothing_is_answered_with_nothing(twin: Callable[..., Twin]) -> None:
    with serving(FakeBidi().register) as address:
        client = twin(classifier=address)
        assert client.collect(client.client.classify_many([])) == []


def test_what_a_draining_server_did_not_read_goes_to_another(twin: Callable[..., Twin]) -> None:
    fake = FakeBidi(drains_after(3), drains_after(5), lambda fake, requests, _: answer(requests))
    with serving(fake.register) as address:
        client = twin(classifier=address)
        found = client.collect(client.client.classify_many(["x"] * MANY, batch=20))
    assert sorted(index for index, _ in found) == list(range(MANY))
    assert fake.streams == 3
    assert max(len(message.items) for message in fake.messages) == 20


def test_a_server_that_stays_away_is_asked_four_times(twin: Callable[..., Twin]) -> None:
    fake = FakeBidi(drains_after(0))
    with serving(fake.register) as address:
        client = twin(classifier=address)
        with pytest.raises(Unavailable) as caught:
            client.collect(client.client.classify_many(["x"]))
    assert caught.value.reason == "DRAINING"
    assert fake.streams == 4


def test_progress_gives_new_patience(twin: Callable[..., Twin]) -> None:
    fake = FakeBidi(*[drains_after(1)] * 6, lambda fake, requests, _: answer(requests))
    with serving(fake.register) as address:
        client = twin(classifier=address)
        found = client.collect(client.client.classify_many(["x"] * 10, batch=1))
    assert sorted(index for index, _ in found) == list(range(10))
    assert fake.streams == 7


def test_what_is_wrong_is_not_tried_again(twin: Callable[..., Twin]) -> None:
    def script(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield answered(next(requests))
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "wrong", error_info("INVALID_FIELD"))

    fake = FakeBidi(script)
    with serving(fake.register) as address:
        client = twin(classifier=address)
        many = client.open(lambda: client.client.classify_many(["x", "y"], batch=1))
        assert client.next(many)[0] == 0
        with pytest.raises(InvalidRequest):
            client.next(many)
    assert fake.streams == 1


def test_what_the_items_raise_is_theirs(twin: Callable[..., Twin]) -> None:
    """Even what would be worth another try of ours."""

    def texts() -> Iterator[str]:
        yield from ["x"] * MANY
        raise Unavailable("the source is away")

    fake = FakeBidi()
    with serving(fake.register) as address:
        client = twin(classifier=address)
        with pytest.raises(Unavailable, match="the source is away"):
            client.collect(client.client.classify_many(texts()))
        assert fake.streams == 1
        assert fake.gone.wait(SOON_S)


def test_leaving_the_loop_cancels_the_stream() -> None:
    fake = FakeBidi(answers_one_and_holds)
    with serving(fake.register) as address, Client(classifier=address) as client:
        for index, _ in client.classify_many(["x"] * 10, batch=1):
            assert index == 0
            break
        assert fake.gone.wait(SOON_S)


async def test_closing_the_async_iterator_cancels_the_stream() -> None:
    fake = FakeBidi(answers_one_and_holds)
    with serving(fake.register) as address:
        async with AsyncClient(classifier=address) as client:
            many: Any = client.classify_many(["x"] * 10, batch=1)
            assert (await anext(many))[0] == 0
            await many.aclose()
        assert fake.gone.wait(SOON_S)


def answers_one_and_holds(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
    yield answered(next(requests))
    yield from held(fake, requests, context)


async def test_an_async_source_is_taken_too() -> None:
    async def texts() -> AsyncIterator[str]:
        for _ in range(MANY):
            yield "x"

    with serving(FakeBidi().register) as address:
        async with AsyncClient(classifier=address) as client:
            found = [index async for index, _ in client.classify_many(texts())]
    assert sorted(found) == list(range(MANY))


class Narrow:
    """A stream with room for one message until its results are read."""

    def __init__(self) -> None:
        self.has_room = True
        self._ids: list[str] = []

    def __enter__(self) -> Narrow:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send_many(self, items: dict[str, Any]) -> None:
        assert self.has_room
        self._ids += items
        self.has_room = False

    def __next__(self) -> tuple[str, Any]:
        found = self._ids.pop()
        self.has_room = not self._ids
        return found, None

    def close_send(self) -> None:
        self._ids = [""]


def test_nothing_is_sent_where_it_would_wait() -> None:
    """For bytes, which only the server makes room for, and perhaps not before results are read."""
    found = list(_many.classify_many(Narrow, ["x"] * 10, Backlog([], 3)))
    assert sorted(index for index, _ in found) == list(range(10))


def test_one_item_is_not_many(twin: Callable[..., Twin]) -> None:
    client = twin().client
    for one in ("a text", b"an image", {"input": ["a"]}):
        with pytest.raises(TypeError, match="many items"):
            client.classify_many(one)
    for batch in (0, 1025):
        with pytest.raises(ValueError, match="1 to 1,024"):
            client.classify_many(["x"], batch=batch)


def test_a_drain_after_the_last_result_is_nobodys_error(twin: Callable[..., Twin]) -> None:
    def script(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield from answer(requests)
        drain(context)

    with serving(FakeBidi(script).register) as address:
        client = twin(classifier=address)
        assert len(client.collect(client.client.classify_many(["x"]))) == 1
