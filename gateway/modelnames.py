"""How callers of the dialects name a model in one word. Calls nothing."""

import re

from gristmill.registry.v1 import model_pb2

from services.runtime.errors import InvalidRequest

_MODEL = re.compile(r"(?P<model>[^:@]+)(?::(?P<version>[0-9]{1,9})|@(?P<alias>.+))?")


def model_ref(name: str) -> model_pb2.ModelRef:
    """`name`, `name:version` or `name@alias`."""
    found = _MODEL.fullmatch(name)
    if found is None:
        raise InvalidRequest.field("model", "must be a name, name:version or name@alias")
    if found["version"]:
        return model_pb2.ModelRef(model=found["model"], version=int(found["version"]))
    return model_pb2.ModelRef(model=found["model"], alias=found["alias"])
