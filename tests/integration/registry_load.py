"""Writers on a registry that is killed under them, and the books they keep of what they were told.

Everything that is drawn is drawn from the seed; what the machine adds is when things happen.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from google.protobuf import field_mask_pb2
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from gristmill.registry.v1 import alias_pb2, model_pb2, traffic_policy_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from tests.harness import SOON_S, TRANSPORTS, details, soon, status_of
from tests.integration.registry_model import (
    PRESENT,
    Attempt,
    Change,
    Outcome,
    Recorded,
    Saw,
    State,
    check,
)
from tests.unit.registry.parts import MANIFEST, weights
from tests.unit.registry.wire import RegistryProcess, Wire, artifacts

FILES = {"model.yaml": MANIFEST, "model.onnx": weights(b"1")}
"""The bytes of every version; they are stored before the load begins."""
STAGE = "stage"
"""The model whose versions may be pointed to."""
READY = 3
WRITERS = 16
REFUSALS = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
    }
)
BLAMELESS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


def state_of(resource: Any) -> State | None:
    """The fields of a Resource, of a Model and so on; None where there is none."""
    if "resource" in resource.DESCRIPTOR.oneofs_by_name:
        kind = resource.WhichOneof("resource")
        return state_of(getattr(resource, kind)) if kind else None
    found: dict[str, Any] = MessageToDict(resource, preserving_proto_field_name=True)
    for artifact in found.get("artifacts", ()):
        # A reading says of the bytes what the history does not.
        artifact.pop("stored", None)
    return found


async def stage(wire: Wire) -> None:
    """A model with versions that are ready, and all the bytes that later versions hold."""
    await wire.model(STAGE)
    for _ in range(READY):
        await wire.ready(b"1", STAGE)


@dataclass
class Replica:
    """A registry process and the connection to it, while there is one."""

    process: RegistryProcess
    wire: asyncio.Future[Wire] = field(default_factory=asyncio.Future)
    _channels: list[Any] = field(default_factory=list)

    async def start(self, transport: str) -> None:
        """Start it, and let the writers at it."""
        await asyncio.to_thread(self.process.start, f"--transport={transport}")
        await self.connect()

    async def connect(self) -> None:
        """Let the writers at it."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        channel = grpc.aio.insecure_channel(self.process.target, options=options)
        self._channels.append(channel)
        async with asyncio.timeout(SOON_S):
            await channel.channel_ready()
        self.wire.set_result(Wire(channel))

    async def kill(self) -> None:
        """kill -9."""
        self.wire = asyncio.get_running_loop().create_future()
        self.process.kill()

    async def disconnect(self) -> None:
        """Close the connections, on which no call is left."""
        for channel in self._channels:
            await channel.close()


@dataclass(frozen=True)
class Call:
    """One call that may be made again, and what is known of it beforehand."""

    method: str
    request: Any
    attempt: Attempt
    field: str = ""
    """Of the answer: the resource."""


@dataclass
class Books:
    """What all writers together were told."""

    attempts: list[Attempt] = field(default_factory=list)
    etags: dict[str, str] = field(default_factory=dict)
    """As they were last seen by anybody."""
    versions: list[str] = field(default_factory=list)
    """Versions that were made under load."""
    faults: Counter[str] = field(default_factory=Counter)
    """Answers that no registry should give."""
    calls: int = 0

    def next_call(self) -> str:
        """The id of a new call."""
        self.calls += 1
        return f"{self.calls}"


class Calls:
    """Draws calls for one run."""

    def __init__(self, rng: random.Random, books: Books, prefix: str) -> None:
        self._rng = rng
        self._books = books
        self._prefix = prefix
        self._models = [f"{prefix}-{n}" for n in range(3)]
        self._made = 0

    def draw(self) -> Call:
        """The next call."""
        kinds: Sequence[tuple[int, Callable[[], Call]]] = (
            (25, self._read),
            (9, self._create_model),
            (12, self._update_model),
            (6, self._archive_model),
            (2, self._delete_model),
            (10, self._create_version),
            (6, self._update_version),
            (4, self._delete_version),
            (20, self._set_alias),
            (5, self._delete_alias),
            (8, self._set_policy),
            (3, self._delete_policy),
        )
        (kind,) = self._rng.choices([k for _, k in kinds], [weight for weight, _ in kinds])
        self._made += 1
        call = kind()
        if not call.attempt.reads and self._rng.random() < 0.8:
            request_id = f"{self._prefix}.{self._made}.{self._rng.getrandbits(32):x}"
            call.request.request_id = request_id
            return replace(call, attempt=replace(call.attempt, request=request_id))
        return call

    def _etag(self, name: str, chance: float = 0.6) -> str:
        return self._books.etags.get(name, "") if self._rng.random() < chance else ""

    def _model(self) -> str:
        return f"models/{self._rng.choice(self._models)}"

    def _version(self) -> str:
        return self._rng.choice(self._books.versions or [f"{self._model()}/versions/1"])

    def _alias(self) -> str:
        return f"models/{STAGE}/aliases/{self._prefix}-{self._rng.choice('abc')}"

    def _text(self) -> str:
        return f"text {self._made}"

    def _read(self) -> Call:
        kinds = {
            "GetModel": (self._model(), pb.GetModelRequest, "model"),
            "GetModelVersion": (self._version(), pb.GetModelVersionRequest, "version"),
            "GetAlias": (self._alias(), pb.GetAliasRequest, "alias"),
            "GetTrafficPolicy": (_POLICY, pb.GetTrafficPolicyRequest, "traffic_policy"),
        }
        method = self._rng.choice(list(kinds))
        name, request, found = kinds[method]
        return Call(method, request(name=name), _attempt(name, reads=True, saw=Saw.STATE), found)

    def _create_model(self) -> Call:
        name, said = self._model(), self._text()
        model = model_pb2.Model(task=model_pb2.TASK_CLASSIFICATION, description=said)
        request = pb.CreateModelRequest(model_id=name.removeprefix("models/"), model=model)
        return Call("CreateModel", request, _attempt(name, asked={"description": said}), "model")

    def _update_model(self) -> Call:
        name, said = self._model(), self._text()
        etag = self._etag(name)
        request = pb.UpdateModelRequest(
            model=model_pb2.Model(name=name, description=said, labels={"op": said}, etag=etag)
        )
        asked = {"description": said, "labels": {"op": said}}
        return Call("UpdateModel", request, _attempt(name, etag=etag, asked=asked), "model")

    def _archive_model(self) -> Call:
        name, restore = self._model(), self._rng.random() < 0.5
        etag = self._etag(name)
        request = pb.ArchiveModelRequest(name=name, restore=restore, etag=etag)
        asked = {"archive_time": None if restore else PRESENT}
        return Call("ArchiveModel", request, _attempt(name, etag=etag, asked=asked), "model")

    def _delete_model(self) -> Call:
        name = self._model()
        etag = self._etag(name)
        request = pb.DeleteModelRequest(name=name, etag=etag, force=self._rng.random() < 0.5)
        return Call("DeleteModel", request, _attempt(name, etag=etag, gone=True))

    def _create_version(self) -> Call:
        parent, said = self._model(), self._text()
        version = model_pb2.ModelVersion(artifacts=artifacts(FILES), description=said)
        request = pb.CreateModelVersionRequest(parent=parent, version=version)
        attempt = _attempt(f"{parent}/versions/", asked={"description": said})
        return Call("CreateModelVersion", request, attempt, "version")

    def _update_version(self) -> Call:
        name, said = self._version(), self._text()
        etag = self._etag(name)
        request = pb.UpdateModelVersionRequest(
            version=model_pb2.ModelVersion(name=name, description=said, etag=etag),
            update_mask=field_mask_pb2.FieldMask(paths=["description"]),
        )
        attempt = _attempt(name, etag=etag, asked={"description": said})
        return Call("UpdateModelVersion", request, attempt, "version")

    def _delete_version(self) -> Call:
        name = self._version()
        etag = self._etag(name)
        request = pb.DeleteModelVersionRequest(name=name, etag=etag)
        return Call("DeleteModelVersion", request, _attempt(name, etag=etag, gone=True))

    def _set_alias(self) -> Call:
        name, version = self._alias(), self._rng.randint(1, READY)
        etag = self._etag(name)
        alias = alias_pb2.Alias(name=name, version=version, etag=etag)
        attempt = _attempt(name, etag=etag, asked={"version": version})
        return Call("SetAlias", pb.SetAliasRequest(alias=alias), attempt, "alias")

    def _delete_alias(self) -> Call:
        name = self._alias()
        etag = self._etag(name)
        request = pb.DeleteAliasRequest(name=name, etag=etag)
        return Call("DeleteAlias", request, _attempt(name, etag=etag, gone=True))

    def _set_policy(self) -> Call:
        etag, weight = self._etag(_POLICY), self._rng.randint(1, 9)
        split = traffic_policy_pb2.Split(version=1, weight=weight)
        if self._rng.random() < 0.3:
            split = traffic_policy_pb2.Split(alias=self._alias().rpartition("/")[2], weight=weight)
        policy = traffic_policy_pb2.TrafficPolicy(name=_POLICY, splits=[split], etag=etag)
        attempt = _attempt(_POLICY, etag=etag, asked={"splits": [state_of(split)]})
        request = pb.SetTrafficPolicyRequest(traffic_policy=policy)
        return Call("SetTrafficPolicy", request, attempt, "traffic_policy")

    def _delete_policy(self) -> Call:
        etag = self._etag(_POLICY)
        request = pb.DeleteTrafficPolicyRequest(name=_POLICY, etag=etag)
        return Call("DeleteTrafficPolicy", request, _attempt(_POLICY, etag=etag, gone=True))


_POLICY = f"models/{STAGE}/trafficPolicy"


def _attempt(name: str, **fields: Any) -> Attempt:
    return Attempt("", name, 0, 0, Outcome.UNKNOWN, **fields)


class Writer:
    """One of the writers: a call after the other, on whichever replica it draws."""

    def __init__(
        self, rng: random.Random, calls: Calls, books: Books, replicas: Sequence[Replica]
    ) -> None:
        self._rng = rng
        self._calls = calls
        self._books = books
        self._replicas = replicas

    async def run(self, count: int, done: Callable[[], None]) -> None:
        """Make so many calls; `done` is told of each."""
        for _ in range(count):
            call = self._calls.draw()
            while self._again(await self._make(call), call):
                pass
            done()

    def _again(self, outcome: Outcome, call: Call) -> bool:
        """Whether to repeat a call: often after an unknown outcome, now and then after success."""
        if not call.attempt.request:
            return False
        return self._rng.random() < {Outcome.UNKNOWN: 0.8, Outcome.OK: 0.1}.get(outcome, 0)

    async def _make(self, call: Call) -> Outcome:
        replica = self._rng.choice(self._replicas)
        wire = await soon(asyncio.shield(replica.wire))
        loop = asyncio.get_running_loop()
        attempt = replace(
            call.attempt, call=f"{call.method}-{self._books.next_call()}", start=loop.time()
        )
        try:
            answer = await getattr(wire.stub, call.method)(
                call.request, timeout=SOON_S, metadata=(("x-request-id", attempt.call),)
            )
        except grpc.aio.AioRpcError as error:
            told = self._failed(attempt, error)
        else:
            told = self._answered(call, attempt, answer)
        self._books.attempts.append(replace(told, end=loop.time()))
        return told.outcome

    def _answered(self, call: Call, attempt: Attempt, answer: Any) -> Attempt:
        if not call.field:
            return replace(attempt, outcome=Outcome.OK)
        found = getattr(answer, call.field)
        state = state_of(found)
        name = found.name
        if call.method == "CreateModelVersion":
            self._books.versions.append(name)
        self._books.etags[name] = found.etag
        return replace(attempt, outcome=Outcome.OK, answer=state)

    def _failed(self, attempt: Attempt, error: Any) -> Attempt:
        if error.code() not in REFUSALS:
            if error.code() not in BLAMELESS:
                self._books.faults[f"{error.code().name}: {error.details()}"] += 1
            return attempt
        status = status_of(error)
        about = [one.resource_name for one in details(status, error_details_pb2.ResourceInfo)]
        refused = replace(attempt, outcome=Outcome.REFUSED)
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return replace(refused, saw=Saw.STATE, about=about[0], answer=None)
        if error.code() is grpc.StatusCode.ALREADY_EXISTS:
            return replace(refused, saw=Saw.EXISTING, about=about[0])
        if error.code() is grpc.StatusCode.ABORTED:
            return replace(refused, saw=Saw.OTHER_ETAG)
        return refused


async def snapshot(wire: Wire) -> tuple[int, dict[str, State]]:
    """All resources as a watch without a revision begins with them."""
    found: dict[str, State] = {}
    async with watching(wire, pb.WatchRequest()) as responses:
        async for response in responses:
            if response.WhichOneof("event") == "bookmark":
                return int(response.revision), found
            state = state_of(response.snapshot)
            assert state is not None
            found[state["name"]] = state
    raise AssertionError("the watch ended")


async def listed(wire: Wire) -> dict[str, State]:
    """All resources as List and Get have them; archived models too."""
    found: list[Any] = []
    for query in ("", 'archive_time > "2000-01-01T00:00:00Z"'):
        token = "-"
        while token:
            request = pb.ListModelsRequest(filter=query, page_size=7, page_token=token.strip("-"))
            answer = await soon(wire.stub.ListModels(request))
            found += [one for one in answer.models if one.name not in {m.name for m in found}]
            token = answer.next_page_token
    for model in [one.name for one in found]:
        versions = pb.ListModelVersionsRequest(parent=model, page_size=1000)
        aliases = pb.ListAliasesRequest(parent=model, page_size=1000)
        found += (await soon(wire.stub.ListModelVersions(versions))).versions
        found += (await soon(wire.stub.ListAliases(aliases))).aliases
        with suppress(grpc.aio.AioRpcError):
            request = pb.GetTrafficPolicyRequest(name=f"{model}/trafficPolicy")
            found.append((await soon(wire.stub.GetTrafficPolicy(request))).traffic_policy)
    return {one.name: state_of(one) or {} for one in found}


def change_of(change: Any) -> Change:
    """A change as the model knows it."""
    return Change(
        change.revision,
        change.name,
        change.request_id,
        state_of(change.before),
        state_of(change.after),
    )


@asynccontextmanager
async def watching(wire: Wire, request: Any) -> AsyncIterator[Any]:
    """A watch, cancelled at the end of the block."""
    call = wire.stub.Watch(request)
    try:
        async with asyncio.timeout(SOON_S):
            yield call
    finally:
        call.cancel()


async def history(wire: Wire, after: int) -> list[Change]:
    """All changes after a revision, up to now."""
    last = await wire.revision()
    found: list[Change] = []
    if last == after:
        return found
    async with watching(wire, pb.WatchRequest(after_revision=after)) as responses:
        async for response in responses:
            if response.WhichOneof("event") == "change":
                found.append(change_of(response.change))
                if found[-1].revision >= last:
                    break
    return found


async def follow(replica: Replica, after: int, found: list[Change]) -> None:
    """Watch through every restart, each time from the last change that came."""
    while True:
        wire = await asyncio.shield(replica.wire)
        at = found[-1].revision if found else after
        with suppress(grpc.aio.AioRpcError):
            async for response in wire.stub.Watch(pb.WatchRequest(after_revision=at)):
                if response.WhichOneof("event") == "change":
                    found.append(change_of(response.change))
        # What ended because its connection was closed goes on with the next one.
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Look again until it holds."""
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0.005)


@dataclass
class Run:
    """One round: what it did, and what came of it."""

    recorded: Recorded
    books: Books
    followed: list[Change]

    def judge(self) -> None:
        """Hold it against the model."""
        objections = check(self.recorded)
        assert not objections, "\n".join(f"{one.rule}: {one.text}" for one in objections[:10])
        assert self.followed == self.recorded.history, "the watch is not what the history is"
        assert not self.books.faults, self.books.faults


async def round_of(replicas: Sequence[Replica], seed: int, *, calls: int, kills: int) -> Run:
    """Writers on all replicas; one of them, drawn each time, is killed and started again."""
    rng, books = random.Random(seed), Books()
    source = Calls(rng, books, f"s{seed}")
    writers = [Writer(random.Random(rng.random()), source, books, replicas) for _ in range(WRITERS)]
    revision, first = await snapshot(await replicas[0].wire)
    books.etags.update({name: state["etag"] for name, state in first.items()})
    followed: list[Change] = []
    following = asyncio.create_task(follow(replicas[0], revision, followed))
    killer = Killer(replicas, rng, sorted(rng.sample(range(WRITERS, calls), kills)))
    try:
        await asyncio.gather(*(one.run(calls // WRITERS, killer.count) for one in writers))
        await killer.end()
        wire = await replicas[0].wire
        found = await history(wire, revision)
        await until(lambda: len(followed) >= len(found))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    last = await listed(await replicas[-1].wire)
    return Run(Recorded(revision, first, found, books.attempts, last), books, followed)


class Killer:
    """Kills a replica some moment after each of certain calls."""

    def __init__(self, replicas: Sequence[Replica], rng: random.Random, moments: list[int]) -> None:
        self._replicas = replicas
        self._rng = rng
        self._moments = moments
        self._done = 0
        self._killing: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()

    def count(self) -> None:
        """One more call ended."""
        self._done += 1
        if self._moments and self._done >= self._moments[0]:
            self._moments.pop(0)
            self._killing.append(asyncio.create_task(self._kill()))

    async def end(self) -> None:
        """Wait until all are up again."""
        await asyncio.gather(*self._killing)
        assert not self._moments

    async def _kill(self) -> None:
        replica = self._rng.choice(self._replicas)
        # Not to synchronise: so that the kill falls into the middle of whatever is under way.
        await asyncio.sleep(self._rng.random() * 0.02)
        async with self._turn:
            await replica.kill()
            await replica.start(self._rng.choice(TRANSPORTS))
