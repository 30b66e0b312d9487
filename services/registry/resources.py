"""The registry's nouns and the rules of their states. Knows no database and no wire."""

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer

from services.runtime.errors import (
    ALIAS_NOT_FOUND,
    ARTIFACT_NOT_FOUND,
    ETAG_MISMATCH,
    GATE_UNMET,
    MODEL_NOT_FOUND,
    TRAFFIC_POLICY_NOT_FOUND,
    VERSION_NOT_FOUND,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Violation,
)

Task = Literal["classification", "generation", "dataset"]
State = Literal["uploading", "validating", "ready", "rejected", "quarantined", "archived"]
Kind = Literal["model", "version", "alias", "traffic_policy"]
ChangeKind = Literal["created", "updated", "deleted"]
LIVE = "live"

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_MODEL = re.compile(rf"models/({_ID})")
_VERSION = re.compile(rf"models/({_ID})/versions/([1-9][0-9]{{0,9}})")
_ALIAS = re.compile(rf"models/({_ID})/aliases/({_ID})")
_POLICY = re.compile(rf"models/({_ID})/trafficPolicy")


def stored_moment(value: datetime) -> str:
    """As moments are written into bodies: in UTC and to the microsecond, so that texts compare."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Moment = Annotated[datetime, PlainSerializer(stored_moment, when_used="json-unless-none")]


class Record(BaseModel):
    """A resource as it is stored: immutable, JSON both ways."""

    # A metric may be NaN or infinite; as null it could not be read again.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings"
    )


class ModelRecord(Record):
    """A model."""

    id: str
    task: Task
    description: str = ""
    labels: dict[str, str] = {}
    etag: str = ""
    create_time: Moment
    update_time: Moment
    archive_time: Moment | None = None
    latest_version: int = 0

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"models/{self.id}"


class ArtifactRecord(Record):
    """One file of a version."""

    path: str
    size_bytes: int
    sha256: str


class RejectionRecord(Record):
    """Why a version cannot be served."""

    path: str
    rule: str
    message: str


class LineageRecord(Record):
    """Where a version came from."""

    source: str = ""
    revision: str = ""
    parent_version: int = 0
    conversion: str = ""
    facts: dict[str, str] = {}


class TensorRecord(Record):
    """A tensor that a model takes or gives."""

    name: str
    datatype: str
    """As the Open Inference Protocol names it, "FP32"."""
    shape: tuple[int, ...]
    """-1: any length."""


class SignatureRecord(Record):
    """What a version takes and gives."""

    input_kinds: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    max_tokens: int = 0
    inputs: tuple[TensorRecord, ...] = ()
    outputs: tuple[TensorRecord, ...] = ()


class VersionRecord(Record):
    """A version of a model."""

    model: str
    version: int
    state: State = "uploading"
    artifacts: tuple[ArtifactRecord, ...]
    description: str = ""
    labels: dict[str, str] = {}
    metrics: dict[str, float] = {}
    signature: SignatureRecord | None = None
    lineage: LineageRecord | None = None
    rejections: tuple[RejectionRecord, ...] = ()
    etag: str = ""
    create_time: Moment
    ready_time: Moment | None = None
    creator: str = ""

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"models/{self.model}/versions/{self.version}"

    @property
    def digest(self) -> str:
        """The identity of its content: SHA-256 over the sorted paths and digests."""
        return content_digest((a.path, a.sha256) for a in self.artifacts)

    def artifact(self, path: str) -> ArtifactRecord:
        """The artifact of this path."""
        for artifact in self.artifacts:
            if artifact.path == path:
                return artifact
        raise NotFound(
            f"{self.name} declares no artifact {path!r}",
            reason=ARTIFACT_NOT_FOUND,
            resource=("artifact", f"{self.name}/{path}"),
        )


class GateRecord(Record):
    """A condition on a metric of the version that an alias moves to."""

    metric: str
    comparison: Literal["at_least", "at_most"]
    value: float | None = None
    holder_plus: float | None = None


class AliasRecord(Record):
    """A movable name for a version."""

    model: str
    alias: str
    version: int
    gates: tuple[GateRecord, ...] = ()
    etag: str = ""
    update_time: Moment

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"models/{self.model}/aliases/{self.alias}"


class SplitRecord(Record):
    """One share of a traffic policy: a version, or an alias wherever it points."""

    version: int = 0
    alias: str = ""
    weight: int = 0


class TrafficPolicyRecord(Record):
    """How calls that name neither version nor alias are spread."""

    model: str
    splits: tuple[SplitRecord, ...]
    sticky_key: str = ""
    shadow_version: int = 0
    etag: str = ""
    update_time: Moment

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"models/{self.model}/trafficPolicy"


Resource = ModelRecord | VersionRecord | AliasRecord | TrafficPolicyRecord
KINDS: dict[Kind, type[Resource]] = {
    "model": ModelRecord,
    "version": VersionRecord,
    "alias": AliasRecord,
    "traffic_policy": TrafficPolicyRecord,
}


class PointRecord(Record):
    """One point of a latency curve."""

    batch_size: int
    length: int
    p50_us: int
    p95_us: int


class ProfileRecord(Record):
    """The latency of a version on one kind of host."""

    model: str
    version: int
    fingerprint: str
    points: tuple[PointRecord, ...]
    measure_time: Moment


def kind_of(resource: Resource) -> Kind:
    """Which kind of resource this is."""
    return next(kind for kind, cls in KINDS.items() if isinstance(resource, cls))


class ChangeRecord(Record):
    """One change in the append-only history."""

    revision: int
    commit_time: Moment
    actor: str
    name: str
    kind: ChangeKind
    before: Resource | None
    after: Resource | None
    request_id: str


def content_digest(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256, in hexadecimal, over sorted lines of digest and path."""
    lines = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def model_id(name: str, *, wildcard: bool = False) -> str:
    """The id in "models/{model}"; with `wildcard` also "-", for all of them."""
    if wildcard and name == "models/-":
        return "-"
    return _match(_MODEL, name, "models/{model}")[0]


def version_key(name: str) -> tuple[str, int]:
    """Model and number in "models/{model}/versions/{version}"."""
    model, version = _match(_VERSION, name, "models/{model}/versions/{version}")
    return model, int(version)


def alias_key(name: str) -> tuple[str, str]:
    """Model and alias in "models/{model}/aliases/{alias}"."""
    model, alias = _match(_ALIAS, name, "models/{model}/aliases/{alias}")
    return model, alias


def policy_model(name: str) -> str:
    """The model in "models/{model}/trafficPolicy"."""
    return _match(_POLICY, name, "models/{model}/trafficPolicy")[0]


def _match(pattern: re.Pattern[str], name: str, form: str) -> tuple[str, ...]:
    found = pattern.fullmatch(name)
    if found is None:
        raise InvalidRequest.field("name", f"must have the form {form}")
    return found.groups()


def model_missing(model: str) -> NotFound:
    """The error for a model that does not exist."""
    return NotFound(
        f"there is no model {model!r}",
        reason=MODEL_NOT_FOUND,
        resource=("model", f"models/{model}"),
    )


def version_missing(model: str, version: int) -> NotFound:
    """The error for a version that does not exist."""
    return NotFound(
        f"model {model!r} has no version {version}",
        reason=VERSION_NOT_FOUND,
        resource=("version", f"models/{model}/versions/{version}"),
    )


def alias_missing(model: str, alias: str) -> NotFound:
    """The error for an alias that does not exist."""
    return NotFound(
        f"model {model!r} has no alias {alias!r}",
        reason=ALIAS_NOT_FOUND,
        resource=("alias", f"models/{model}/aliases/{alias}"),
    )


def policy_missing(model: str) -> NotFound:
    """The error for a model without a traffic policy."""
    return NotFound(
        f"model {model!r} has no traffic policy",
        reason=TRAFFIC_POLICY_NOT_FOUND,
        resource=("traffic_policy", f"models/{model}/trafficPolicy"),
    )


def check_etag(given: str, present: str) -> None:
    """Refuse a change that was made from an old reading."""
    if given and given != present:
        raise Conflict(
            "the resource changed since it was read; read it again", reason=ETAG_MISMATCH
        )


def check_gates(
    gates: Iterable[GateRecord], candidate: VersionRecord, holder: VersionRecord | None
) -> None:
    """Refuse a move that a gate forbids, naming each gate with its figure."""
    unmet = [
        Violation(gate.metric, said)
        for gate in gates
        if (said := _unmet(gate, candidate, holder)) is not None
    ]
    if unmet:
        raise FailedPrecondition(
            "; ".join(f"{v.field}: {v.description}" for v in unmet),
            reason=GATE_UNMET,
            violations=unmet,
        )


def _unmet(gate: GateRecord, candidate: VersionRecord, holder: VersionRecord | None) -> str | None:
    limit = gate.value
    if gate.holder_plus is not None:
        if holder is None:
            return None
        if gate.metric not in holder.metrics:
            return f"version {holder.version}, the present holder, has no such metric"
        limit = holder.metrics[gate.metric] + gate.holder_plus
    figure = candidate.metrics.get(gate.metric)
    if figure is None:
        return f"version {candidate.version} has no such metric"
    if limit is None:
        return "the gate has no limit"
    holds = figure >= limit if gate.comparison == "at_least" else figure <= limit
    sign = ">=" if gate.comparison == "at_least" else "<="
    return None if holds else f"{figure:g} is not {sign} {limit:g}"
