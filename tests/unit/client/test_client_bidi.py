"""ClassifyBidi: what is sent, and what comes back under which id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gristmill_client import InvalidRequest, Prediction

from tests.unit.client.conftest import Begin, Twin
from tests.unit.client.fake_bidi import FakeBidi, held


def test_results_come_under_the_ids_that_were_sent(begin: Begin) -> None:
    fake = FakeBidi()
    client, stream = begin(fake, "sentiment")
    assert client.run(stream.send("I love it.", id="a")) == "a"
    many = {"b": "bad", "c": ("premise", "hypothesis"), "d": [5.1, 3.5]}
    assert client.run(stream.send_many(many, timeout=0.5, priority=1)) == ["b", "c", "d"]
    assert set(stream.pending) <= {"a", "b", "c", "d"}
    client.run(stream.close_send())
    found = dict(client.collect(stream))
    assert list(found) == ["a", "d", "c", "b"]
    assert stream.pending == ()
    assert all(isinstance(one, Prediction) for one in found.values())
    assert (found["a"].label, found["a"].model, found["a"].version) == ("positive", "sentiment", 3)
    assert found["a"].timings.batch_size == 8
    assert isinstance(found["b"].error, InvalidRequest)
    assert found["b"].error.field_violations[0].description == "is bad"
    assert [name for name, one in found.items() if one.error] == ["b"]
    assert fake.half_closed.is_set()
    first, second = fake.messages
    assert [(one.id, one.item.WhichOneof("content")) for one in second.items] == [
        ("b", "text"),
        ("c", "text_pair"),
        ("d", "float_features"),
    ]
    assert (second.timeout.ToTimedelta().total_seconds(), second.priority) == (0.5, 1)
    assert (first.timeout.ToTimedelta().total_seconds(), first.priority) == (30.0, 0)
    assert fake.time_left[0] > 1e9, "the stream lasts as long as one likes"


def test_the_clients_timeout_is_the_items(begin: Begin) -> None:
    fake = FakeBidi()
    client, stream = begin(fake, client={"timeout": 7200.0})
    client.run(stream.send("x"))
    client.next(stream)
    assert fake.messages[0].timeout.ToTimedelta().total_seconds() == 3600, "the contract's most"


def test_ids_that_are_not_given_are_new(begin: Begin) -> None:
    client, stream = begin(FakeBidi(held))
    assert client.run(stream.send("x")) == "1"
    assert client.run(stream.send("x", id="4")) == "4"
    assert client.run(stream.send_many(["x", "y", "z"])) == ["2", "3", "5"]
    assert stream.pending == ("1", "4", "2", "3", "5")


def test_a_message_may_have_its_own_model_and_options(begin: Begin) -> None:
    fake = FakeBidi()
    client, stream = begin(fake, "sentiment", alias="live", top_k=2, priority=3)
    for name, own in (
        ("as begun", {}),
        ("again", {}),
        ("another model", {"model": "iris"}),
        ("the first again", {}),
        ("its version", {"version": 7}),
        ("more labels", {"top_k": 5, "probabilities": True, "priority": 9}),
        ("last", {}),
    ):
        client.run(stream.send("x", id=name, **own))
    client.run(stream.close_send())
    client.collect(stream)
    named = {
        name: (model.model, model.alias, model.version, options.top_k)
        for name, (model, options) in fake.effective.items()
    }
    assert named == {
        "as begun": ("sentiment", "live", 0, 2),
        "again": ("sentiment", "live", 0, 2),
        "another model": ("iris", "", 0, 2),
        "the first again": ("sentiment", "live", 0, 2),
        "its version": ("sentiment", "", 7, 2),
        "more labels": ("sentiment", "live", 0, 5),
        "last": ("sentiment", "live", 0, 2),
    }
    assert [message.priority for message in fake.messages] == [3, 3, 3, 3, 3, 9, 3]
    said = [(one.HasField("model"), one.HasField("options")) for one in fake.messages]
    assert said == [
        (True, True),
        (False, False),
        (True, False),
        (True, False),
        (True, False),
        (True, True),
        (False, True),
    ]


def test_another_alias_comes_without_the_streams_version(begin: Begin) -> None:
    fake = FakeBidi()
    client, stream = begin(fake, "sentiment", version=3)
    client.run(stream.send("x", id="own", alias="candidate"))
    client.next(stream)
    model, _ = fake.effective["own"]
    assert (model.model, model.alias, model.version) == ("sentiment", "candidate", 0)


def test_the_only_model_served_may_be_meant_again(begin: Begin) -> None:
    fake = FakeBidi()
    client, stream = begin(fake)
    client.run(stream.send("x", id="1"))
    client.run(stream.send("x", id="2", model="iris"))
    client.run(stream.send("x", id="3"))
    client.run(stream.close_send())
    client.collect(stream)
    assert [message.HasField("model") for message in fake.messages] == [False, True, True]
    assert [fake.effective[name][0].model for name in "123"] == ["", "iris", ""]


@pytest.mark.parametrize(
    ("send", "error", "match"),
    [
        (lambda s: s.send("x", id="used"), ValueError, "'used' is under way"),
        (lambda s: s.send_many({"new": "x", "used": "y"}), ValueError, "'used' is under way"),
        (lambda s: s.send("x", id=""), ValueError, "1 to 128 characters"),
        (lambda s: s.send("x", id="i" * 129), ValueError, "1 to 128 characters"),
        (lambda s: s.send_many([]), ValueError, "1 to 1,024 items"),
        (lambda s: s.send_many(["x"] * 1025), ValueError, "1 to 1,024 items"),
        (lambda s: s.send("x", timeout=0), ValueError, "1 ms to 1 hour"),
        (lambda s: s.send("x", timeout=3601), ValueError, "1 ms to 1 hour"),
        (lambda s: s.send("x", version=1, alias="live"), ValueError, "not both"),
        (lambda s: s.send_many("text"), TypeError, "several items"),
        (lambda s: s.send(None), TypeError, "an item is"),
        (lambda s: s.send("x", topk=1), TypeError, "topk"),
    ],
)
def test_what_would_end_the_stream_is_not_sent(
    begin: Begin, send: Callable[[Any], Any], error: type[Exception], match: str
) -> None:
    client, stream = begin(FakeBidi(held))
    client.run(stream.send("x", id="used"))
    with pytest.raises(error, match=match):
        client.run(send(stream))
    assert stream.pending == ("used",)


def test_what_a_stream_is_opened_with_is_checked(twin: Callable[..., Twin]) -> None:
    client = twin()
    with pytest.raises(TypeError, match="topk"):
        client.open(lambda: client.client.classify_bidi("m", topk=1))
    with pytest.raises(ValueError, match="not both"):
        client.open(lambda: client.client.classify_bidi("m", version=1, alias="live"))
    with pytest.raises(ValueError, match="1 ms to 1 hour"):
        client.open(lambda: client.client.classify_bidi("m", timeout=0))


def test_an_id_may_be_used_again_after_its_result(begin: Begin) -> None:
    client, stream = begin(FakeBidi())
    for _ in range(3):
        client.run(stream.send("x", id="again"))
        assert client.next(stream)[0] == "again"
    client.run(stream.close_send())
    assert client.collect(stream) == []
