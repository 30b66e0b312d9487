"""What points to versions, as the async client shows it: the twin of _models_pointing.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from gristmill_client import _pointer_flows as flows
from gristmill_client import _registry_flows as registry
from gristmill_client._aio_session import AsyncSession
from gristmill_client.resources import Alias, Change, Resolution, Resource, TrafficPolicy


class AsyncPointing:
    """Arguments, results and errors are those of Pointing."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def aliases(self, name: str) -> list[Alias]:
        """As Models.aliases. RPC ListAliases."""
        return await self._session.run(flows.list_aliases(name))

    async def resolve(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> Resolution:
        """As Models.resolve. RPC ResolveModel."""
        return await self._session.run(registry.resolve(name, version, alias))

    async def promote(
        self,
        name: str,
        version: int,
        alias: str = "live",
        *,
        gates: Sequence[str] | None = None,
        etag: str = "",
    ) -> Alias:
        """As Models.promote. RPC SetAlias."""
        return await self._session.run(flows.promote(name, version, alias, gates, etag))

    async def delete_alias(self, name: str, alias: str) -> None:
        """As Models.delete_alias. RPC DeleteAlias."""
        await self._session.run(flows.delete_alias(name, alias))

    async def traffic_policy(self, name: str) -> TrafficPolicy:
        """As Models.traffic_policy. RPC GetTrafficPolicy."""
        return await self._session.run(flows.traffic_policy(name))

    async def set_traffic_policy(
        self,
        name: str,
        split: Mapping[int | str, int],
        *,
        sticky_key: str = "",
        shadow: int | None = None,
        etag: str = "",
    ) -> TrafficPolicy:
        """As Models.set_traffic_policy. RPC SetTrafficPolicy."""
        return await self._session.run(
            flows.set_traffic_policy(name, split, sticky_key, shadow, etag)
        )

    async def delete_traffic_policy(self, name: str) -> None:
        """As Models.delete_traffic_policy. RPC DeleteTrafficPolicy."""
        await self._session.run(flows.delete_traffic_policy(name))

    async def history(
        self,
        name: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        resource: str = "",
        limit: int | None = None,
    ) -> list[Change]:
        """As Models.history. RPC GetModelHistory."""
        return await self._session.run(flows.history(name, start, end, resource, limit))

    async def at(self, name: str, moment: datetime, *, alias: str | None = None) -> Resource | None:
        """As Models.at. RPC GetModelHistory."""
        return await self._session.run(flows.at(name, moment, alias))
