"""A watch tells every change once, in order, whatever happens to its connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from gristmill.registry.v1 import alias_pb2, history_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill_client import Alias, OutOfRange, Unavailable
from gristmill_client._steps import Patience
from gristmill_client.errors import ErrorDetails, NotFound, Overloaded

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_registry import FakeRegistry
from tests.unit.client.fakes import cut, error_info, refuse, serving


def live(version: int) -> history_pb2.Resource:
    alias = alias_pb2.Alias(name="models/sentiment/aliases/live", version=version)
    return history_pb2.Resource(alias=alias)


def snapshot(version: int, revision: int = 7) -> pb.WatchResponse:
    return pb.WatchResponse(snapshot=live(version), revision=revision)


def complete(revision: int = 7) -> pb.WatchResponse:
    return pb.WatchResponse(bookmark=pb.Bookmark(snapshot_complete=True), revision=revision)


def change(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(
        change=history_pb2.Change(
            revision=revision,
            name="models/sentiment/aliases/live",
            kind=history_pb2.CHANGE_KIND_UPDATED,
            actor="ann",
            before=live(revision - 1),
            after=live(revision),
        ),
        revision=revision,
    )


def script(*messages: pb.WatchResponse, then: Callable[[Any], None] = cut) -> Any:
    """One Watch call: messages, then how it ends."""

    def play(context: Any) -> Iterator[pb.WatchResponse]:
        yield from messages
        then(context)

    return play


def slow(context: Any) -> None:
    refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "slow", error_info("SLOW_CONSUMER"))


def compacted(context: Any) -> None:
    refuse(context, grpc.StatusCode.OUT_OF_RANGE, "gone", error_info("REVISION_COMPACTED"))


def nothing(context: Any) -> None:
    """The call ends in order."""


def watched(
    twin: Callable[..., Twin], registry: FakeRegistry, limit: int, **arguments: Any
) -> list[Any]:
    with serving(registry.register) as address:
        client = twin(registry=address)
        watch = client.open(lambda: client.client.models.watch(**arguments))
        found = client.collect(watch, limit)
        client.close(watch)
    return found


def test_changes_are_told_with_before_and_after(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry(watch_scripts=[script(change(8))])
    (event,) = watched(
        twin, registry, 1, after_revision=7, names=["sentiment"], task="classification"
    )
    assert (event.kind, event.revision, event.actor) == ("updated", 8, "ann")
    assert isinstance(event.resource, Alias)
    assert (event.before.version, event.resource.version) == (7, 8)
    request = registry.watches[0]
    assert (request.after_revision, list(request.names)) == (7, ["models/sentiment"])


@pytest.mark.parametrize("end", [cut, slow, nothing])
def test_a_cut_watch_resumes_after_the_last_revision(
    twin: Callable[..., Twin], end: Callable[[Any], None]
) -> None:
    registry = FakeRegistry(
        watch_scripts=[script(change(8), change(9), then=end), script(change(10))]
    )
    events = watched(twin, registry, 3, after_revision=7)
    assert [event.revision for event in events] == [8, 9, 10]
    assert [request.after_revision for request in registry.watches] == [7, 9]


def test_a_change_that_comes_twice_is_told_once(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry(watch_scripts=[script(change(8), change(8), change(9))])
    events = watched(twin, registry, 2, after_revision=7)
    assert [event.revision for event in events] == [8, 9]


def test_a_snapshot_that_was_cut_is_told_once_and_whole(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry(
        watch_scripts=[
            script(snapshot(1, revision=5)),
            script(snapshot(2), snapshot(3), complete(), change(8)),
        ]
    )
    events = watched(twin, registry, 4)
    assert [event.kind for event in events] == ["snapshot", "snapshot", "bookmark", "updated"]
    assert [event.resource.version for event in events[:2]] == [2, 3]
    assert events[2].snapshot_complete
    assert not registry.watches[1].HasField("after_revision")


def test_a_bookmark_moves_the_place_to_resume(twin: Callable[..., Twin]) -> None:
    bookmark = pb.WatchResponse(bookmark=pb.Bookmark(), revision=20)
    registry = FakeRegistry(watch_scripts=[script(bookmark), script(change(21))])
    events = watched(twin, registry, 2, after_revision=7)
    assert [event.kind for event in events] == ["bookmark", "updated"]
    assert registry.watches[1].after_revision == 20


def test_a_revision_that_is_gone_is_for_the_caller_to_decide(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry(watch_scripts=[script(change(8)), script(then=compacted)])
    with pytest.raises(OutOfRange) as caught:
        watched(twin, registry, 2, after_revision=7)
    assert caught.value.reason == "REVISION_COMPACTED"


def test_a_registry_that_was_never_there_raises_at_once(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry(watch_scripts=[script()])
    with pytest.raises(Unavailable):
        watched(twin, registry, 1)
    assert len(registry.watches) == 1


def test_patience_grows_and_ends() -> None:
    patience = Patience(limit=8, rng=lambda: 1.0)
    pauses = [patience.pause(Unavailable("away")) for _ in range(8)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    with pytest.raises(Unavailable):
        patience.pause(Unavailable("away"))


def test_patience_begins_anew_with_progress() -> None:
    patience = Patience(limit=1, rng=lambda: 0.0)
    for _ in range(3):
        assert patience.pause(Unavailable("away")) == pytest.approx(0.05)
        patience.progressed()


def test_patience_heeds_the_server_but_not_without_end() -> None:
    patience = Patience(rng=lambda: 1.0)
    slow_consumer = ErrorDetails(reason="SLOW_CONSUMER", retry_after=3.0)
    assert patience.pause(Overloaded("slow", slow_consumer)) == 3.0
    assert patience.pause(Unavailable("away", ErrorDetails(retry_after=3600.0))) == 60.0


def test_patience_has_none_for_what_will_not_pass() -> None:
    with pytest.raises(NotFound):
        Patience().pause(NotFound("gone"))
