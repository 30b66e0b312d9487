"""The table of routes: literals first, duplicates refused, and the whole contract in it."""

import itertools

import pytest
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2

from gateway.app import build, spoken, table_of
from gateway.config import GatewayConfig
from gateway.contract import MOUNTED, Mounted
from gateway.dialect import Dialect
from gateway.routing import Route, RouteTable
from gateway.template import Template
from gateway.transcode import Transcoder
from services.runtime.auth import SCOPES

TABLE = table_of()


def route(http_method: str, template: str, target: str) -> Route[str]:
    return Route(http_method, Template.parse(template), target)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_literals_win_whatever_the_order(order: tuple[int, ...]) -> None:
    routes = [
        route("GET", "/v1/{name=models/*}", "one"),
        route("GET", "/v1/models/special", "special"),
        route("GET", "/v1/{rest=**}", "rest"),
    ]
    table = RouteTable(routes[index] for index in order)

    def target(path: str) -> str:
        found = table.match("GET", path)
        assert found is not None
        assert found.route is not None
        return found.route.target

    assert target("/v1/models/special") == "special"
    assert target("/v1/models/a") == "one"
    assert target("/v1/models/a/b") == "rest"


def test_duplicates_are_refused_however_their_variables_are_called() -> None:
    with pytest.raises(ValueError, match="leads to"):
        RouteTable([route("GET", "/v1/{name=models/*}", "a"), route("GET", "/v1/models/{id}", "b")])


def test_a_path_without_the_method_names_those_it_has() -> None:
    found = TABLE.match("POST", "/registry/v1/models/m/versions/3")
    assert found is not None
    assert found.route is None
    assert found.allowed == ("DELETE", "GET", "PATCH")
    assert TABLE.match("GET", "/registry/v2/models") is None
    assert TABLE.match("GET", "*") is None


@pytest.mark.parametrize(
    ("http_method", "path", "method"),
    [
        ("GET", "/registry/v1/models", "ListModels"),
        ("GET", "/registry/v1/models:resolve", "ResolveModel"),
        ("GET", "/registry/v1/models:batchGet", "BatchGetModels"),
        ("GET", "/registry/v1/models/m", "GetModel"),
        ("POST", "/registry/v1/models/m:archive", "ArchiveModel"),
        ("PUT", "/registry/v1/models/m/trafficPolicy", "SetTrafficPolicy"),
        ("GET", "/registry/v1/models/m/versions:batchGet", "BatchGetModelVersions"),
        ("POST", "/registry/v1/models/m/versions:import", "ImportModel"),
        ("GET", "/registry/v1/models/m/versions/3", "GetModelVersion"),
        ("PUT", "/registry/v1/models/m/aliases/live", "SetAlias"),
        ("GET", "/registry/v1/operations/finalize.m.3", "GetOperation"),
        ("POST", "/generator/v1/generate:stream", "GenerateStream"),
    ],
)
def test_the_contract_is_routed(http_method: str, path: str, method: str) -> None:
    found = TABLE.match(http_method, path)
    assert found is not None
    assert found.route is not None
    assert found.route.target.descriptor.name == method


def test_every_annotated_method_has_its_routes_and_no_other_has_one() -> None:
    routed = {one.target.path for one in TABLE.routes}
    for mounted in MOUNTED:
        for method in mounted.service.methods:
            path = f"/{mounted.service.full_name}/{method.name}"
            annotated = method.GetOptions().HasExtension(annotations_pb2.http)
            if mounted.rules is not None:
                annotated = method.name in mounted.rules
            assert (path in routed) == annotated
    assert not any(path.endswith(("/UploadArtifact", "/DownloadArtifact")) for path in routed)


def test_every_route_has_a_scope() -> None:
    assert {one.target.path for one in TABLE.routes} <= set(SCOPES)


async def test_no_two_routes_of_the_application_match_the_same_request() -> None:
    gateway = build(GatewayConfig(port=0))
    contract = [one.key for one in gateway.table.routes]
    seen = set(contract)
    for one in _flat(gateway.app.router.routes):
        if isinstance(one, Transcoder):
            continue
        asked = (
            [(operation.verb, operation.path) for operation in one.operations]
            if isinstance(one, Dialect)
            else [("GET", getattr(one, "path"))]  # noqa: B009  # a Starlette route, of any kind
        )
        for verb, path in asked:
            segments = tuple("*" if part[:1] == "{" else part for part in path[1:].split("/"))
            assert (verb, segments, "") not in seen, path
            seen.add((verb, segments, ""))
    await gateway.close()
    # These belong to OpenAI and to the Open Inference Protocol.
    assert not any(segments[0] in ("v1", "v2") for _, segments, _ in contract)


def test_every_operation_of_a_dialect_has_a_scope() -> None:
    assert {one.method.path for one in spoken()} <= set(SCOPES)


def _flat(routes: object) -> list[object]:
    """Routes, also those that newer versions of FastAPI keep inside an included router."""
    found: list[object] = []
    for one in routes:  # type: ignore[attr-defined]  # a list of whatever Starlette keeps
        inner = getattr(getattr(one, "original_router", None), "routes", None)
        found += _flat(inner) if inner is not None else [one]
    return found


def _service(rule: http_pb2.HttpRule) -> Mounted:
    """A service with one method of this rule, taking a Duration."""
    file = descriptor_pb2.FileDescriptorProto(
        name="t.proto", package="t", dependency=["google/protobuf/duration.proto"]
    )
    kind = ".google.protobuf.Duration"
    file.service.add(name="S").method.add(name="M", input_type=kind, output_type=kind)
    pool = descriptor_pool.DescriptorPool()
    duration = descriptor_pb2.FileDescriptorProto()
    duration_pb2.DESCRIPTOR.CopyToProto(duration)
    pool.Add(duration)
    pool.Add(file)
    return Mounted("u", pool.FindServiceByName("t.S"), {"M": rule})


@pytest.mark.parametrize(
    "rule",
    [
        http_pb2.HttpRule(get="/v/{nothing}"),
        http_pb2.HttpRule(post="/v", body="nothing"),
        http_pb2.HttpRule(get="/v", response_body="seconds"),
        http_pb2.HttpRule(custom=http_pb2.CustomHttpPattern(kind="HEAD", path="/v")),
        http_pb2.HttpRule(),
    ],
)
def test_rules_that_cannot_be_kept_stop_the_start(rule: http_pb2.HttpRule) -> None:
    with pytest.raises(ValueError, match=r"/t\.S/M|no field"):
        table_of([_service(rule)])


def test_additional_bindings_are_routes_too() -> None:
    rule = http_pb2.HttpRule(get="/a/{seconds}")
    rule.additional_bindings.add(post="/b", body="*")
    keys = {(one.http_method, str(one.template)) for one in table_of([_service(rule)]).routes}
    assert keys == {("GET", "/a/{seconds}"), ("POST", "/b")}
