"""How a ClassifyBidi stream fails: what is raised, when, and which ids have no result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from gristmill_client import Cancelled, DeadlineExceeded, InvalidRequest, Unavailable

from tests.unit.client.conftest import Begin
from tests.unit.client.fake_bidi import FakeBidi, answered, drains_after, held
from tests.unit.client.fakes import error_info, refuse


def test_what_ends_the_stream_is_raised_after_the_results_before_it(begin: Begin) -> None:
    def script(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield answered(next(requests))
        next(requests)
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "wrong", error_info("INVALID_FIELD"))

    client, stream = begin(FakeBidi(script))
    client.run(stream.send_many({"a": "x", "b": "y"}))
    client.run(stream.send("z", id="c"))
    assert [name for name, _ in client.collect(stream, 2)] == ["b", "a"]
    for _ in range(2):
        with pytest.raises(InvalidRequest) as caught:
            client.next(stream)
        assert (caught.value.reason, caught.value.request_id) == ("INVALID_FIELD", "request-1")
    with pytest.raises(InvalidRequest, match="wrong"):
        client.run(stream.send("w"))
    assert stream.pending == ("c",)


@pytest.mark.parametrize("round_", range(10))
def test_a_server_that_drains_leaves_pending_what_it_has_not_read(
    begin: Begin, round_: int
) -> None:
    client, stream = begin(FakeBidi(drains_after(5)))
    sent = [client.run(stream.send("x")) for _ in range(200)]
    found = []
    with pytest.raises(Unavailable) as caught:
        while True:
            found.append(client.next(stream)[0])
    assert (caught.value.reason, caught.value.request_id) == ("DRAINING", "request-1")
    assert found == sent[:5]
    assert list(stream.pending) == sent[5:]


def test_a_stream_that_ends_too_soon_was_cut(begin: Begin) -> None:
    def script(fake: FakeBidi, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        yield answered(next(requests))
        next(requests)

    client, stream = begin(FakeBidi(script))
    client.run(stream.send("x", id="a"))
    client.run(stream.send("x", id="b"))
    assert client.next(stream)[0] == "a"
    with pytest.raises(Unavailable, match="before everything was answered"):
        client.next(stream)
    with pytest.raises(Unavailable):
        client.run(stream.send("x"))
    assert stream.pending == ("b",)


def test_nothing_is_sent_after_the_end(begin: Begin) -> None:
    client, stream = begin(FakeBidi())
    client.run(stream.close_send())
    client.run(stream.close_send())
    with pytest.raises(RuntimeError, match="close_send"):
        client.run(stream.send("x"))
    assert client.collect(stream) == []
    with pytest.raises(RuntimeError, match="close_send"):
        client.run(stream.send("x"))


def test_nothing_is_sent_on_a_closed_stream(begin: Begin) -> None:
    client, stream = begin(FakeBidi())
    client.run(stream.send_many(["x", "y"]))
    client.next(stream)
    client.close(stream)
    client.close(stream)
    with pytest.raises(RuntimeError, match="closed"):
        client.run(stream.send("x"))
    assert client.collect(stream) == []


def test_a_stream_may_have_a_deadline(begin: Begin) -> None:
    fake = FakeBidi(held)
    client, stream = begin(fake, stream_timeout=0.2)
    client.run(stream.send("x", id="a"))
    with pytest.raises(DeadlineExceeded):
        client.next(stream)
    assert stream.pending == ("a",)


def test_closing_the_client_cancels_the_stream(begin: Begin) -> None:
    fake = FakeBidi(held)
    client, stream = begin(fake)
    client.run(stream.send("x"))
    client.run(client.client.close())
    with pytest.raises(Cancelled):
        client.next(stream)
    with pytest.raises(Cancelled):
        client.run(stream.send("x"))
