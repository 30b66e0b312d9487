"""Nobody gets in who does not belong: every method of every running server, found by reflection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf import message_factory
from gristmill.classifier.v1 import classifier_service_pb2_grpc as classifier_rpc
from gristmill.generator.v1 import generator_service_pb2_grpc as generator_rpc
from gristmill.registry.v1 import registry_service_pb2_grpc as registry_rpc
from gristmill.registry.v1 import worker_service_pb2_grpc as worker_rpc

from services.oip import contract as oip
from services.runtime import errors
from services.runtime.auth import ALL_SCOPES, PUBLIC, SCOPES, token_hash
from services.runtime.server import Service
from tests.harness import Reflection, Served, collect, failure, reason, serve, soon

Code = grpc.StatusCode
OPERATIONS = operations_pb2.DESCRIPTOR.services_by_name["Operations"]


class NotBuilt:
    """A servicer that has every method and builds none, as generated bases do."""

    def __getattr__(self, name: str) -> Any:
        """Any method."""

        def not_built(_request: Any, _context: Any) -> Any:
            raise NotImplementedError

        return not_built


def unary_handlers(service: Any) -> dict[str, Any]:
    """Handlers for each method of a service without streams."""
    return {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(NotBuilt(), method.name),
            message_factory.GetMessageClass(method.input_type).FromString,
            message_factory.GetMessageClass(method.output_type).SerializeToString,
        )
        for method in service.methods
    }


def services() -> dict[str, Service]:
    """What each kind of server serves, with nothing behind it."""
    return {
        "classifier": Service(
            "classifier",
            servicers=[
                (
                    classifier_rpc.add_ClassifierServiceServicer_to_server,
                    classifier_rpc.ClassifierServiceServicer(),
                )
            ],
            handlers={oip.SERVICE.full_name: oip.method_handlers(NotBuilt())},
            pools=(oip.POOL,),
        ),
        "generator": Service(
            "generator",
            servicers=[
                (
                    generator_rpc.add_GeneratorServiceServicer_to_server,
                    generator_rpc.GeneratorServiceServicer(),
                )
            ],
        ),
        "registry": Service(
            "registry",
            servicers=[
                (
                    registry_rpc.add_RegistryServiceServicer_to_server,
                    registry_rpc.RegistryServiceServicer(),
                ),
                (
                    worker_rpc.add_WorkerServiceServicer_to_server,
                    worker_rpc.WorkerServiceServicer(),
                ),
            ],
            handlers={OPERATIONS.full_name: unary_handlers(OPERATIONS)},
        ),
    }


KINDS = sorted(services())


def holding(*scopes: str) -> tuple[tuple[str, str], ...]:
    """The credentials of a caller with these scopes."""
    return (("authorization", f"Bearer {token(scopes)}"),)


def token(scopes: Any) -> str:
    """A token whose scopes are these."""
    return "token-" + "-".join(sorted(scopes))


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token with every scope but one, for each; one with just one; one with all."""
    every = sorted(ALL_SCOPES)
    sets = [every, *([s] for s in every), *([s for s in every if s != left] for left in every)]
    path = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    entries = [
        f"- {{identity: caller{n}, sha256: {token_hash(token(scopes))}, scopes: {scopes}}}"
        for n, scopes in enumerate(sets)
    ]
    path.write_text("tokens:\n" + "\n".join(entries))
    return path


@asynccontextmanager
async def guarded(kind: str, transport: str, tokens: Path) -> AsyncIterator[Served]:
    """A server of this kind that asks for tokens."""
    async with serve(services()[kind], transport, token_file=tokens) as served:
        yield served


async def refusal(channel: Any, path: str, method: Any, credentials: Any) -> Any:
    """The error of an empty call; None where it is answered."""
    if path == "/grpc.health.v1.Health/Watch":
        watch = channel.unary_stream(path)(b"", metadata=credentials)
        return None if await soon(watch.read()) is not grpc.aio.EOF else await failure(watch.read())
    assert method.server_streaming or not method.client_streaming, "a shape that we have not"
    try:
        if method.client_streaming:
            await collect(partial(channel.stream_stream(path), [b""], metadata=credentials))
        elif method.server_streaming:
            await collect(channel.unary_stream(path)(b"", metadata=credentials))
        else:
            await soon(channel.unary_unary(path)(b"", metadata=credentials))
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_token_only_health_answers(
    kind: str, transport: str, token_file: Path
) -> None:
    async with guarded(kind, transport, token_file) as served:
        methods = await Reflection(served.channel, metadata=holding("read")).methods()
        assert len(methods) > 10
        for path, method in methods.items():
            for credentials, why in (
                ((), errors.CREDENTIALS_MISSING),
                ((("authorization", "Bearer unknown"),), errors.CREDENTIALS_INVALID),
            ):
                error = await refusal(served.channel, path, method, credentials)
                if path.startswith("/grpc.health.v1.Health/"):
                    assert error is None, path
                else:
                    assert error.code() is Code.UNAUTHENTICATED, path
                    assert reason(error) == why


@pytest.mark.parametrize("kind", KINDS)
async def test_each_method_needs_its_scope_and_no_other(
    kind: str, transport: str, token_file: Path
) -> None:
    """With every scope but its own it is refused; with its own alone it is reached."""
    async with guarded(kind, transport, token_file) as served:
        methods = await Reflection(served.channel, metadata=holding("read")).methods()
        for path, method in methods.items():
            assert path in SCOPES, f"{path} has no scope"
            scope = SCOPES[path]
            if scope == PUBLIC:
                continue
            others = holding(*(ALL_SCOPES - {scope}))
            error = await refusal(served.channel, path, method, others)
            assert error.code() is Code.PERMISSION_DENIED, path
            assert reason(error) == errors.SCOPE_MISSING
            reached = await refusal(served.channel, path, method, holding(scope))
            if reached is not None:
                assert reached.code() in (Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT), path


@pytest.mark.parametrize("kind", KINDS)
async def test_a_method_that_nobody_listed_is_refused(
    kind: str, transport: str, token_file: Path
) -> None:
    """Default deny: a handler without a row in the table is reached by no token at all."""
    service = services()[kind]
    service.handlers["new.v1.New"] = {"New": unary_handlers(OPERATIONS)["GetOperation"]}
    async with serve(service, transport, token_file=token_file) as served:
        call = served.channel.unary_unary("/new.v1.New/New")(b"", metadata=holding(*ALL_SCOPES))
        assert (await failure(call)).code() is Code.PERMISSION_DENIED


async def test_the_table_has_no_stale_method(token_file: Path) -> None:
    found: set[str] = set()
    for kind in KINDS:
        async with guarded(kind, "grpcio", token_file) as served:
            found |= set(await Reflection(served.channel, metadata=holding("read")).methods())
    assert found == set(SCOPES)
