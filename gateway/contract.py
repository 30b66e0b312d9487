"""Which services the gateway mounts, and the routes their annotations ask for. Calls nothing."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from gristmill.classifier.v1 import classifier_service_pb2
from gristmill.generator.v1 import generator_service_pb2
from gristmill.registry.v1 import registry_service_pb2

from gateway.descriptors import field_at
from gateway.routing import Route
from gateway.template import Template

_REPEATABLE = (
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    descriptor_pb2.MethodOptions.IDEMPOTENT,
)
_PATTERNS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: what it is called, what it takes and gives, and who answers it."""

    descriptor: Any = field(repr=False)
    upstream: str
    path: str
    """As gRPC has it: "/package.Service/Method"."""
    request: Any = field(repr=False)
    response: Any = field(repr=False)
    client_streaming: bool = False
    server_streaming: bool = False
    repeatable: bool = False
    """The contract says that doing it twice is no different from once."""
    by_request_id: bool = False
    """That is so only where the request has a request_id."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A service, the upstream that answers it, and rules that replace its own annotations."""

    upstream: str
    service: Any
    rules: Mapping[str, http_pb2.HttpRule] | None = None


# As Google's own APIs do for mixins: the annotations in operations.proto are only a default, and
# its /v1 belongs to OpenAI here. Operations are the registry's.
_OPERATIONS = {
    "ListOperations": http_pb2.HttpRule(get="/registry/v1/operations"),
    "GetOperation": http_pb2.HttpRule(get="/registry/v1/{name=operations/*}"),
    "DeleteOperation": http_pb2.HttpRule(delete="/registry/v1/{name=operations/*}"),
    "CancelOperation": http_pb2.HttpRule(post="/registry/v1/{name=operations/*}:cancel", body="*"),
    "WaitOperation": http_pb2.HttpRule(post="/registry/v1/{name=operations/*}:wait", body="*"),
}

UPSTREAMS = ("registry", "classifier", "generator")
MOUNTED: tuple[Mounted, ...] = (
    Mounted("registry", registry_service_pb2.DESCRIPTOR.services_by_name["RegistryService"]),
    Mounted("registry", operations_pb2.DESCRIPTOR.services_by_name["Operations"], _OPERATIONS),
    Mounted("classifier", classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"]),
    Mounted("generator", generator_service_pb2.DESCRIPTOR.services_by_name["GeneratorService"]),
)


def method(upstream: str, name: str) -> Method:
    """The annotated method of this name that an upstream has in its own service."""
    for mounted in MOUNTED:
        if mounted.upstream == upstream and mounted.rules is None:
            for route in routes(mounted):
                if route.target.descriptor.name == name:
                    return route.target
    raise LookupError(f"{upstream} has no {name}")


def routes(mounted: Mounted) -> Iterator[Route[Method]]:
    """The routes of every annotated method of a service; ValueError for a rule it cannot keep."""
    for descriptor in mounted.service.methods:
        rule = _rule(mounted, descriptor)
        if rule is None:
            continue
        method = Method(
            descriptor,
            mounted.upstream,
            f"/{mounted.service.full_name}/{descriptor.name}",
            message_factory.GetMessageClass(descriptor.input_type),
            message_factory.GetMessageClass(descriptor.output_type),
            descriptor.client_streaming,
            descriptor.server_streaming,
            descriptor.GetOptions().idempotency_level in _REPEATABLE,
            "request_id" in descriptor.input_type.fields_by_name,
        )
        for binding in (rule, *rule.additional_bindings):
            yield _route(method, binding)


def _rule(mounted: Mounted, descriptor: MethodDescriptor) -> http_pb2.HttpRule | None:
    if mounted.rules is not None:
        return mounted.rules.get(descriptor.name)
    options = descriptor.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return None
    rule: http_pb2.HttpRule = options.Extensions[annotations_pb2.http]
    return rule


def _route(method: Method, rule: http_pb2.HttpRule) -> Route[Method]:
    verb = rule.WhichOneof("pattern")
    if verb not in _PATTERNS or rule.response_body:
        raise ValueError(f"{method.path}: this HTTP rule is not supported: {rule}")
    route = Route(verb.upper(), Template.parse(getattr(rule, verb)), method, rule.body)
    descriptor: Descriptor = method.descriptor.input_type
    if rule.body not in ("", "*") and rule.body not in descriptor.fields_by_name:
        raise ValueError(f"{method.path}: the body names no field: {rule.body}")
    for variable in route.template.variables:
        leaf = field_at(descriptor, variable.field)
        if leaf.is_repeated or leaf.type == FieldDescriptor.TYPE_MESSAGE:
            raise ValueError(f"{method.path}: {variable.field} cannot stand in a path")
    return route
