"""Models, versions and aliases as values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from gristmill.registry.v1 import alias_pb2, model_pb2, signature_pb2
from gristmill.registry.v1.traffic_policy_pb2 import Split as SplitMessage
from gristmill.registry.v1.traffic_policy_pb2 import TrafficPolicy as TrafficPolicyMessage
from gristmill_client import FailedPrecondition, NotFound, Split
from gristmill_client import _registry_messages as messages

from tests.unit.client.conftest import Twin
from tests.unit.client.fake_registry import FakeRegistry
from tests.unit.client.fakes import serving


def test_all_pages_of_a_list_are_read(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry()
    for name in ("iris", "sentiment", "topics"):
        registry.add_version(name, {})
    with serving(registry.register) as address:
        client = twin(registry=address)
        models = client.run(client.client.models.list())
    assert [model.name for model in models] == ["iris", "sentiment", "topics"]
    assert models[0].task == "classification"


def test_a_model_its_versions_and_its_aliases(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", {"a": b"1"})
    registry.add_version("sentiment", {"a": b"22"})
    with serving(registry.register) as address:
        client = twin(registry=address)
        models = client.client.models
        assert client.run(models.get("models/sentiment")).name == "sentiment"
        versions = client.run(models.versions("sentiment"))
        (alias,) = client.run(models.aliases("sentiment"))
        moved = client.run(models.promote("sentiment", 1, "candidate"))
        resolution = client.run(models.resolve("sentiment", alias="candidate"))
    assert [version.version for version in versions] == [2, 1]
    assert versions[0].size_bytes == 2
    assert versions[0].create_time == datetime.fromtimestamp(1_700_000_000, UTC)
    assert versions[0].ready_time is None
    assert (alias.model, alias.alias, alias.version) == ("sentiment", "live", 2)
    assert (moved.alias, moved.version) == ("candidate", 1)
    assert (resolution.version.version, resolution.chosen_by) == (1, "candidate")


def test_deleting_a_version_and_a_model(twin: Callable[..., Twin]) -> None:
    registry = FakeRegistry()
    registry.add_version("sentiment", {})
    registry.add_version("sentiment", {})
    with serving(registry.register) as address:
        client = twin(registry=address)
        models = client.client.models
        client.run(models.delete("sentiment", 1))
        assert [v.version for v in client.run(models.versions("sentiment"))] == [2]
        with pytest.raises(FailedPrecondition):
            client.run(models.delete("sentiment"))
        client.run(models.delete("sentiment", force=True))
        with pytest.raises(NotFound):
            client.run(models.get("sentiment"))


def test_a_version_tells_what_it_is_made_of() -> None:
    message = model_pb2.ModelVersion(
        name="models/sentiment/versions/3",
        version=3,
        state=model_pb2.VERSION_STATE_QUARANTINED,
        lineage=model_pb2.Lineage(parent_version=2, conversion="int8-dynamic"),
    )
    message.signature.labels.extend(["negative", "positive"])
    message.signature.input_kinds.append(signature_pb2.INPUT_KIND_TEXT)
    message.rejections.add(path="model.onnx", rule="digest", message="upload it again")
    version = messages.version(message)
    assert (version.model, version.state) == ("sentiment", "QUARANTINED")
    assert version.signature is not None
    assert version.signature.input_kinds == ("text",)
    assert version.lineage is not None
    assert version.lineage.parent_version == 2
    assert version.rejections[0].rule == "digest"


def test_what_a_newer_registry_made_up_does_not_break_the_client() -> None:
    message = model_pb2.ModelVersion(state=99)  # type: ignore[arg-type]  # not in this contract
    assert str(messages.version(message).state) == "99"


def test_gates_are_told_in_words() -> None:
    alias = alias_pb2.Alias(name="models/m/aliases/live")
    alias.gates.add(metric="accuracy", comparison=alias_pb2.COMPARISON_AT_LEAST, value=0.9)
    alias.gates.add(metric="loss", comparison=alias_pb2.COMPARISON_AT_MOST, holder_plus=0.01)
    assert messages.alias(alias).gates == (
        "accuracy >= 0.9",
        "loss <= that of the present version +0.01",
    )


def test_a_traffic_policy_has_versions_or_aliases() -> None:
    policy = messages.traffic_policy(
        TrafficPolicyMessage(
            name="models/m/trafficPolicy",
            splits=[SplitMessage(version=1, weight=9), SplitMessage(alias="candidate", weight=1)],
        )
    )
    assert policy.model == "m"
    assert policy.splits == (Split(1, None, 9), Split(None, "candidate", 1))
