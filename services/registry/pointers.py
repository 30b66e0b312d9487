"""What points to versions: aliases with their gates, and traffic policies. One method a use case.

Takes and gives records. Knows no wire and no table.
"""

from services.registry.resources import (
    AliasRecord,
    GateRecord,
    SplitRecord,
    TrafficPolicyRecord,
    VersionRecord,
    alias_key,
    check_etag,
    check_gates,
    policy_model,
)
from services.registry.rows import (
    find_alias,
    find_policy,
    get_alias,
    get_model,
    get_policy,
    get_version,
)
from services.registry.store import Author, Store, Write
from services.runtime.errors import FailedPrecondition, InvalidRequest


class Pointers:
    """The use cases over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def set_alias(
        self,
        author: Author,
        name: str,
        version: int,
        gates: tuple[GateRecord, ...] | None,
        etag: str,
        *,
        dry: bool,
    ) -> AliasRecord:
        """Create or move an alias; `gates` None keeps those that it has."""
        model, alias = alias_key(name)
        async with self._store.write(author, dry=dry) as write:
            if done := await write.repeated(AliasRecord):
                return done
            before = await find_alias(write.connection, model, alias)
            check_etag(etag, before.etag if before else "")
            candidate = await _ready(write, model, version)
            rules = gates if gates is not None else before.gates if before else ()
            if before is None or before.version != version:
                holder = (
                    await get_version(write.connection, model, before.version) if before else None
                )
                check_gates(rules, candidate, holder)
            if before and (before.version, before.gates) == (version, rules):
                return await write.answer(before)
            record = AliasRecord(
                model=model, alias=alias, version=version, gates=rules, update_time=write.now
            )
            return await write.answer(await write.save(before, record))

    async def delete_alias(self, author: Author, name: str, etag: str, *, dry: bool) -> None:
        """Delete an alias that no traffic policy names."""
        async with self._store.write(author, dry=dry) as write:
            if await write.done():
                return
            alias = await get_alias(write.connection, *alias_key(name))
            check_etag(etag, alias.etag)
            policy = await find_policy(write.connection, alias.model)
            if policy and any(split.alias == alias.alias for split in policy.splits):
                raise FailedPrecondition(f"{name} is named by the model's traffic policy")
            await write.remove(alias)
            await write.answer(alias)

    async def set_policy(
        self,
        author: Author,
        name: str,
        splits: tuple[SplitRecord, ...],
        sticky_key: str,
        shadow_version: int,
        etag: str,
        *,
        dry: bool,
    ) -> TrafficPolicyRecord:
        """Create or replace the traffic policy of a model."""
        model = policy_model(name)
        _check_splits(splits)
        async with self._store.write(author, dry=dry) as write:
            if done := await write.repeated(TrafficPolicyRecord):
                return done
            await get_model(write.connection, model)
            before = await find_policy(write.connection, model)
            check_etag(etag, before.etag if before else "")
            for split in splits:
                if split.alias:
                    await get_alias(write.connection, model, split.alias)
                else:
                    await _ready(write, model, split.version)
            if shadow_version:
                await _ready(write, model, shadow_version)
            record = TrafficPolicyRecord(
                model=model,
                splits=splits,
                sticky_key=sticky_key,
                shadow_version=shadow_version,
                update_time=write.now,
            )
            if before and _same(before, record):
                return await write.answer(before)
            return await write.answer(await write.save(before, record))

    async def delete_policy(self, author: Author, name: str, etag: str, *, dry: bool) -> None:
        """Delete the traffic policy of a model."""
        async with self._store.write(author, dry=dry) as write:
            if await write.done():
                return
            policy = await get_policy(write.connection, policy_model(name))
            check_etag(etag, policy.etag)
            await write.remove(policy)
            await write.answer(policy)


async def _ready(write: Write, model: str, version: int) -> VersionRecord:
    found = await get_version(write.connection, model, version)
    if found.state != "ready":
        raise FailedPrecondition(f"{found.name} is {found.state}, not ready")
    return found


def _check_splits(splits: tuple[SplitRecord, ...]) -> None:
    if not any(split.weight for split in splits):
        raise InvalidRequest.field("traffic_policy.splits", "needs a weight above 0")
    targets = [(split.version, split.alias) for split in splits]
    if len(set(targets)) != len(targets):
        raise InvalidRequest.field("traffic_policy.splits", "names a target twice")


def _same(before: TrafficPolicyRecord, after: TrafficPolicyRecord) -> bool:
    unlike = {"etag", "update_time"}
    return before.model_dump(exclude=unlike) == after.model_dump(exclude=unlike)
