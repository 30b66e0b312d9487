"""What requests have in common: who makes them, and which fields they change."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from services.registry.store import Author, request_digest
from services.runtime.auth import ANONYMOUS
from services.runtime.call import current_call
from services.runtime.errors import InvalidRequest


def author(request: Any) -> Author:
    """Who makes this change, under the request id where the request has one."""
    call = current_call()
    request_id = str(getattr(request, "request_id", ""))
    message: Message = request
    return Author(
        identity="" if call.identity is ANONYMOUS else call.identity.name,
        call_id=call.request_id,
        request_id=request_id,
        method=call.method,
        digest=request_digest(message.SerializeToString(deterministic=True)) if request_id else "",
    )


def paths(mask: FieldMask, known: Sequence[str]) -> Sequence[str]:
    """The fields that a mask names; all those known where it names none."""
    unknown = [path for path in mask.paths if path not in known]
    if unknown:
        raise InvalidRequest.field("update_mask", f"cannot change {', '.join(unknown)}")
    return list(mask.paths) or list(known)


def masked(mask: FieldMask, values: dict[str, Any]) -> dict[str, object]:
    """Those of the values that a mask names."""
    return {name: values[name] for name in paths(mask, list(values))}
