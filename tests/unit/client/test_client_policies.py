"""Policies, gates, the archive and the history, against a real registry."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from gristmill.registry.v1 import alias_pb2
from gristmill_client import (
    Alias,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Split,
    TrafficPolicy,
)
from gristmill_client._gates import gate_of, gate_text
from gristmill_client._history_messages import timestamp

from tests.unit.client.conftest import Twin
from tests.unit.registry.parts import weights
from tests.unit.registry.wire import RegistryProcess

Make = Callable[..., Twin]


@pytest.fixture
def both(twin: Make, process: RegistryProcess, bare: Path, named: str) -> Twin:
    """A client of a registry that has two versions of the model."""
    made = twin(registry=process.target)
    made.run(made.client.models.push(bare, name=named))
    (bare / "model.onnx").write_bytes(weights(b"other"))
    made.run(made.client.models.push(bare, name=named, alias="live"))
    return made


def test_a_policy_is_set_read_and_removed(both: Twin, named: str) -> None:
    models = both.client.models
    split = {1: 90, "live": 10}
    put = both.run(models.set_traffic_policy(named, split, sticky_key="user", shadow=2))
    assert put.splits == (Split(1, None, 90), Split(None, "live", 10))
    assert (put.sticky_key, put.shadow_version) == ("user", 2)
    assert both.run(models.traffic_policy(named)) == put
    with pytest.raises(Conflict):
        both.run(models.set_traffic_policy(named, {1: 1}, etag="an older one"))
    assert both.run(models.resolve(named)).chosen_by == "traffic_policy"
    both.run(models.delete_traffic_policy(named))
    with pytest.raises(NotFound) as caught:
        both.run(models.traffic_policy(named))
    assert caught.value.reason == "TRAFFIC_POLICY_NOT_FOUND"


def test_a_gate_holds_a_version_back_and_says_by_how_much(both: Twin, named: str) -> None:
    models = both.client.models
    both.run(models.update(named, 1, metrics={"accuracy": 0.8}))
    both.run(models.update(named, 2, metrics={"accuracy": 0.9}))
    gates = ["accuracy>=holder-0.01", "p95_ms<=40"]
    with pytest.raises(FailedPrecondition) as caught:
        both.run(models.promote(named, 1, gates=gates))
    assert caught.value.reason == "GATE_UNMET"
    accuracy, p95 = caught.value.preconditions
    assert accuracy.startswith("accuracy: 0.8 ")
    assert p95.startswith("p95_ms: ")
    moved = both.run(models.promote(named, 1, gates=["accuracy>=holder-0.2"]))
    assert moved.gates == ("accuracy >= that of the present version -0.2",)
    assert both.run(models.promote(named, 2)).gates == moved.gates
    assert both.run(models.promote(named, 1, gates=[])).gates == ()


def test_a_move_from_an_old_reading_is_refused(both: Twin, named: str) -> None:
    models = both.client.models
    with pytest.raises(Conflict):
        both.run(models.promote(named, 1, etag="an older one"))
    both.run(models.delete_alias(named, "live"))
    assert both.run(models.aliases(named)) == []


def test_the_past_can_be_asked_for(both: Twin, named: str) -> None:
    models = both.client.models
    time.sleep(0.01)
    before = datetime.now(UTC)
    time.sleep(0.01)
    both.run(models.promote(named, 1))
    both.run(models.set_traffic_policy(named, {1: 1}))
    time.sleep(0.01)
    now = datetime.now(UTC)
    assert both.run(models.at(named, before)) is None
    then = both.run(models.at(named, before, alias="live"))
    assert isinstance(then, Alias)
    assert then.version == 2
    assert both.run(models.at(named, now, alias="live")).version == 1
    assert isinstance(both.run(models.at(named, now)), TrafficPolicy)
    newest, older = both.run(models.history(named, start=before, end=now))
    assert (newest.kind, newest.name) == ("created", f"models/{named}/trafficPolicy")
    assert (older.kind, older.before.version, older.after.version) == ("updated", 2, 1)
    moves = both.run(models.history(named, resource="aliases/live"))
    assert [change.kind for change in moves] == ["updated", "created"]
    assert len(both.run(models.history(named, limit=1))) == 1


def test_what_is_put_away_comes_back(both: Twin, named: str) -> None:
    models = both.client.models
    assert both.run(models.archive(named, 1)).state == "ARCHIVED"
    with pytest.raises(FailedPrecondition):
        both.run(models.archive(named, 2))  # `live` points to it
    assert both.run(models.restore(named, 1)).state == "READY"
    assert both.run(models.archive(named)).archive_time is not None
    assert named not in {model.name for model in both.run(models.list())}
    found = both.run(models.list("archive_time:*", "create_time desc"))
    assert named in {model.name for model in found}
    assert both.run(models.restore(named)).archive_time is None


def test_labels_metrics_and_descriptions_change(both: Twin, named: str) -> None:
    models = both.client.models
    both.run(models.update(named, 1, metrics={"accuracy": 0.9}, labels={"team": "nlp"}))
    changed = both.run(models.update(named, 1, description="the first"))
    assert (changed.description, changed.labels) == ("the first", {"team": "nlp"})
    assert both.run(models.update(named, labels={"a": "b"})).labels == {"a": "b"}
    good = both.run(models.versions(named, "metrics.accuracy >= 0.9", "version"))
    assert [version.version for version in good] == [1]
    both_ways = both.run(models.versions(named, order_by="version"))
    assert [version.version for version in both_ways] == [1, 2]
    with pytest.raises(ValueError, match="give a description"):
        both.run(models.update(named, 1))
    with pytest.raises(ValueError, match="name one"):
        both.run(models.update(named, metrics={"accuracy": 1}))


def test_several_are_read_at_once(both: Twin, named: str) -> None:
    models = both.client.models
    found = both.run(models.batch_get_versions([(named, 2), (named, 1)]))
    assert [version.version for version in found] == [2, 1]
    assert [model.name for model in both.run(models.batch_get([named]))] == [named]
    with pytest.raises(NotFound):
        both.run(models.batch_get([named, "nothing"]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("accuracy>=0.9", "accuracy >= 0.9"),
        (" p95_ms_batch_8 <= 40 ", "p95_ms_batch_8 <= 40"),
        ("f1 >= holder", "f1 >= that of the present version +0"),
        ("loss<=holder + 1e-2", "loss <= that of the present version +0.01"),
        ("loss <= that of the present version -0.5", "loss <= that of the present version -0.5"),
        ("t<=-3.", "t <= -3"),
    ],
)
def test_gates_are_read_as_they_are_written(text: str, words: str) -> None:
    gate = gate_of(text)
    assert gate_text(gate) == words
    assert gate_of(words) == gate


@pytest.mark.parametrize("text", ["", "accuracy", "accuracy>0.9", ">=1", "a>=b", "a>=holder*2"])
def test_what_is_no_gate_is_refused_before_any_call(text: str) -> None:
    with pytest.raises(InvalidRequest, match="METRIC>=NUMBER"):
        gate_of(text)


def test_a_comparison_has_one_direction() -> None:
    assert gate_of("a>=1").comparison == alias_pb2.COMPARISON_AT_LEAST
    assert gate_of("a<=1").comparison == alias_pb2.COMPARISON_AT_MOST


def test_a_moment_without_a_zone_is_local_time() -> None:
    naive = datetime(2026, 1, 2, 3, 4, 5)
    assert timestamp(naive) == timestamp(naive.astimezone(UTC))
    assert timestamp(None) is None
