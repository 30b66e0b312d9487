"""What points to versions, as the sync client shows it: the half of Models about aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from gristmill_client import _pointer_flows as flows
from gristmill_client import _registry_flows as registry
from gristmill_client._session import Session
from gristmill_client.resources import Alias, Change, Resolution, Resource, TrafficPolicy


class Pointing:
    """Aliases with their gates, traffic policies, and the history of it all."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def aliases(self, name: str) -> list[Alias]:
        """The aliases of a model, by name. RPC ListAliases."""
        return self._session.run(flows.list_aliases(name))

    def resolve(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> Resolution:
        """The version that a reference means now; neither version nor alias: what a call without
        them would get. Raises NotFound. RPC ResolveModel.
        """
        return self._session.run(registry.resolve(name, version, alias))

    def promote(
        self,
        name: str,
        version: int,
        alias: str = "live",
        *,
        gates: Sequence[str] | None = None,
        etag: str = "",
    ) -> Alias:
        """Points the alias to the version, creating it if need be.

        `gates` replaces what a version needs for a move, this one too: "accuracy>=0.9",
        "p95_ms_batch_8<=40", "accuracy>=holder-0.01" (`holder`: the version pointed to now); None
        leaves them, an empty list removes them. With an `etag` the alias must still have it.

        Raises FailedPrecondition where the version is not READY or a gate does not hold: then
        `preconditions` names each with its figure; Conflict (the etag). RPC SetAlias.
        """
        return self._session.run(flows.promote(name, version, alias, gates, etag))

    def delete_alias(self, name: str, alias: str) -> None:
        """Deletes an alias. Raises NotFound. RPC DeleteAlias."""
        self._session.run(flows.delete_alias(name, alias))

    def traffic_policy(self, name: str) -> TrafficPolicy:
        """How calls without version and alias are spread. Raises NotFound. RPC GetTrafficPolicy."""
        return self._session.run(flows.traffic_policy(name))

    def set_traffic_policy(
        self,
        name: str,
        split: Mapping[int | str, int],
        *,
        sticky_key: str = "",
        shadow: int | None = None,
        etag: str = "",
    ) -> TrafficPolicy:
        """Spreads calls that name neither version nor alias, replacing the policy there was.

        `split` maps versions and aliases to relative weights: `{3: 90, "candidate": 10}`. Calls
        with the same value of the metadata key `sticky_key` stay together; the version `shadow`
        gets a copy of every call. With an `etag` the policy must still have it.

        Raises NotFound, FailedPrecondition (a version that is not READY), InvalidRequest, Conflict
        (the etag). RPC SetTrafficPolicy.
        """
        return self._session.run(flows.set_traffic_policy(name, split, sticky_key, shadow, etag))

    def delete_traffic_policy(self, name: str) -> None:
        """The alias `live` decides again. Raises NotFound. RPC DeleteTrafficPolicy."""
        self._session.run(flows.delete_traffic_policy(name))

    def history(
        self,
        name: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        resource: str = "",
        limit: int | None = None,
    ) -> list[Change]:
        """What happened to a model and all that belongs to it, newest first, from `start` to
        before `end`; at most `limit` changes.

        `resource` narrows it to one: "aliases/live", "trafficPolicy", "versions/3". A moment
        without a time zone is local time. A deleted model still has its history.
        RPC GetModelHistory.
        """
        return self._session.run(flows.history(name, start, end, resource, limit))

    def at(self, name: str, moment: datetime, *, alias: str | None = None) -> Resource | None:
        """What the alias, or without one the traffic policy, was at a moment; None: not there.

        RPC GetModelHistory.
        """
        return self._session.run(flows.at(name, moment, alias))
