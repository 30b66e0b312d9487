"""What points to versions (aliases, traffic policies), and what did: calls as flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from gristmill.registry.v1 import alias_pb2, traffic_policy_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from gristmill_client import _history_messages as history_messages
from gristmill_client import _registry_messages as messages
from gristmill_client._gates import gate_of
from gristmill_client._registry_flows import ask, model_name, pages, request_id
from gristmill_client._steps import Flow
from gristmill_client.resources import Alias, Change, Resource, TrafficPolicy


def list_aliases(name: str) -> Flow[list[Alias]]:
    request = pb.ListAliasesRequest(parent=model_name(name))
    found = yield from pages(lambda stub: stub.ListAliases, request, "aliases")
    return [messages.alias(message) for message in found]


def promote(
    name: str, version: int, alias: str = "live", gates: Sequence[str] | None = None, etag: str = ""
) -> Flow[Alias]:
    """`gates` None leaves them as they are."""
    request = pb.SetAliasRequest(
        alias=alias_pb2.Alias(
            name=_alias_name(name, alias),
            version=version,
            gates=[gate_of(gate) for gate in gates or ()],
            etag=etag,
        ),
        request_id=request_id(),
    )
    request.update_mask.paths.extend(["version"] if gates is None else ["version", "gates"])
    response = yield from ask(lambda stub: stub.SetAlias, request)
    return messages.alias(response.alias)


def delete_alias(name: str, alias: str) -> Flow[None]:
    request = pb.DeleteAliasRequest(name=_alias_name(name, alias), request_id=request_id())
    yield from ask(lambda stub: stub.DeleteAlias, request)


def traffic_policy(name: str) -> Flow[TrafficPolicy]:
    request = pb.GetTrafficPolicyRequest(name=_policy_name(name))
    response = yield from ask(lambda stub: stub.GetTrafficPolicy, request)
    return messages.traffic_policy(response.traffic_policy)


def set_traffic_policy(
    name: str, split: Mapping[int | str, int], sticky_key: str, shadow: int | None, etag: str
) -> Flow[TrafficPolicy]:
    policy = traffic_policy_pb2.TrafficPolicy(
        name=_policy_name(name),
        splits=[_split(target, weight) for target, weight in split.items()],
        sticky_key=sticky_key,
        shadow_version=shadow or 0,
        etag=etag,
    )
    request = pb.SetTrafficPolicyRequest(traffic_policy=policy, request_id=request_id())
    response = yield from ask(lambda stub: stub.SetTrafficPolicy, request)
    return messages.traffic_policy(response.traffic_policy)


def delete_traffic_policy(name: str) -> Flow[None]:
    request = pb.DeleteTrafficPolicyRequest(name=_policy_name(name), request_id=request_id())
    yield from ask(lambda stub: stub.DeleteTrafficPolicy, request)


def history(
    name: str,
    start: datetime | None,
    end: datetime | None,
    resource: str,
    limit: int | None,
) -> Flow[list[Change]]:
    request = pb.GetModelHistoryRequest(
        name=model_name(name),
        start_time=history_messages.timestamp(start),
        end_time=history_messages.timestamp(end),
        resource=_within(name, resource),
    )
    found = yield from pages(lambda stub: stub.GetModelHistory, request, "changes", limit)
    return [history_messages.change(message) for message in found]


def at(name: str, moment: datetime, alias: str | None) -> Flow[Resource | None]:
    resource = _policy_name(name) if alias is None else _alias_name(name, alias)
    request = pb.GetModelHistoryRequest(
        name=model_name(name),
        page_size=1,
        resource=resource,
        at_time=history_messages.timestamp(moment),
    )
    response = yield from ask(lambda stub: stub.GetModelHistory, request)
    return history_messages.named_resource(response.at)[1]


def _split(target: int | str, weight: int) -> traffic_policy_pb2.Split:
    if isinstance(target, int):
        return traffic_policy_pb2.Split(version=target, weight=weight)
    return traffic_policy_pb2.Split(alias=target, weight=weight)


def _alias_name(name: str, alias: str) -> str:
    return f"{model_name(name)}/aliases/{alias}"


def _policy_name(name: str) -> str:
    return f"{model_name(name)}/trafficPolicy"


def _within(name: str, resource: str) -> str:
    """Takes "aliases/live" for "models/sentiment/aliases/live"."""
    if not resource or resource.startswith(model_name(name)):
        return resource
    return f"{model_name(name)}/{resource}"
