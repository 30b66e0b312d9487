"""The wire side of aliases, traffic policies, references, and of the history."""

import random
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from gristmill.registry.v1 import registry_service_pb2 as pb

from services.registry import converters as to
from services.registry import paging, readers, resources
from services.registry.pointers import Pointers
from services.registry.requests import author, paths
from services.registry.resources import VersionRecord
from services.registry.store import Span, Store
from services.runtime import traffic
from services.runtime.errors import InvalidRequest, UnsupportedField

Context = Any


class PointerCalls:
    """What points to versions, and what pointed to them."""

    store: Store
    pointers: Pointers

    async def shown(self, record: VersionRecord) -> Any:
        """A version as callers see it."""
        raise NotImplementedError

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> Any:  # noqa: N802
        named = paths(request.update_mask, ("version", "gates"))
        if "version" not in named:
            raise UnsupportedField.field("update_mask", "version must be among the paths")
        given = "gates" in named if request.update_mask.paths else bool(request.alias.gates)
        record = await self.pointers.set_alias(
            author(request),
            request.alias.name,
            request.alias.version,
            readers.gates_in(request.alias) if given else None,
            request.alias.etag,
            dry=request.validate_only,
        )
        return pb.SetAliasResponse(alias=to.alias_out(record))

    async def GetAlias(self, request: pb.GetAliasRequest, context: Context) -> Any:  # noqa: N802
        record = await self.store.alias(*resources.alias_key(request.name))
        return pb.GetAliasResponse(alias=to.alias_out(record))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Context) -> Any:  # noqa: N802
        size = paging.size(request.page_size)
        records = await self.store.aliases(
            resources.model_id(request.parent), paging.after(request.page_token), size + 1
        )
        shown, token = paging.cut(records, size, lambda record: record.alias)
        return pb.ListAliasesResponse(
            aliases=[to.alias_out(record) for record in shown], next_page_token=token
        )

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> Any:  # noqa: N802
        await self.pointers.delete_alias(
            author(request), request.name, request.etag, dry=request.validate_only
        )
        return pb.DeleteAliasResponse()

    async def SetTrafficPolicy(  # noqa: N802
        self, request: pb.SetTrafficPolicyRequest, context: Context
    ) -> Any:
        policy = request.traffic_policy
        record = await self.pointers.set_policy(
            author(request),
            policy.name,
            readers.splits_in(policy),
            policy.sticky_key,
            policy.shadow_version,
            policy.etag,
            dry=request.validate_only,
        )
        return pb.SetTrafficPolicyResponse(traffic_policy=to.policy_out(record))

    async def GetTrafficPolicy(  # noqa: N802
        self, request: pb.GetTrafficPolicyRequest, context: Context
    ) -> Any:
        record = await self.store.policy(resources.policy_model(request.name))
        return pb.GetTrafficPolicyResponse(traffic_policy=to.policy_out(record))

    async def DeleteTrafficPolicy(  # noqa: N802
        self, request: pb.DeleteTrafficPolicyRequest, context: Context
    ) -> Any:
        await self.pointers.delete_policy(
            author(request), request.name, request.etag, dry=request.validate_only
        )
        return pb.DeleteTrafficPolicyResponse()

    async def ResolveModel(self, request: pb.ResolveModelRequest, context: Context) -> Any:  # noqa: N802
        model = request.model.model
        if not model:
            raise InvalidRequest.field("model.model", "is required")
        sticky = request.sticky_value
        draw = traffic.draw(model, sticky) if sticky else random.random()
        record, chosen_by = await self.store.resolve(
            model, request.model.version, request.model.alias, draw
        )
        return pb.ResolveModelResponse(version=await self.shown(record), chosen_by=chosen_by)

    async def GetModelHistory(self, request: pb.GetModelHistoryRequest, context: Context) -> Any:  # noqa: N802
        model = resources.model_id(request.name)
        resource = request.resource
        if resource and resource != request.name and not resource.startswith(f"{request.name}/"):
            raise InvalidRequest.field("resource", f"is not of {request.name}")
        if request.HasField("at_time") and not resource:
            raise InvalidRequest.field("at_time", "needs resource")
        size = paging.size(request.page_size)
        span = Span(_moment(request, "start_time"), _moment(request, "end_time"), request.resource)
        before = paging.before(request.page_token)
        records = await self.store.history(model, before, size + 1, span)
        shown, token = paging.cut(records, size, lambda record: str(record.revision))
        at = _moment(request, "at_time")
        return pb.GetModelHistoryResponse(
            changes=[to.change_out(record) for record in shown],
            next_page_token=token,
            at=to.resource_out(await self.store.at(resource, at)) if at else None,
        )


def _moment(request: pb.GetModelHistoryRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type]  # one of three names
        return None
    stamp: Timestamp = getattr(request, field)
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest.field(field, "is no moment") from error
