"""What the registry keeps, as plain values; knows no wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

Task = Literal["classification", "generation", "dataset"]
Conversion = Literal["onnx", "onnx-int8-dynamic"]
VersionState = Literal[
    "UPLOADING", "VALIDATING", "READY", "REJECTED", "QUARANTINED", "ARCHIVED", "UNSPECIFIED"
]


@dataclass(frozen=True, slots=True)
class Model:
    """A name under which versions are kept. `latest_version` 0: there is none yet."""

    name: str
    task: Task | None
    description: str
    labels: Mapping[str, str]
    latest_version: int
    etag: str
    create_time: datetime | None
    update_time: datetime | None
    archive_time: datetime | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a version: path within it, length in bytes, SHA-256 in lower-case hexadecimal."""

    path: str
    size_bytes: int
    sha256: str
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives. `max_tokens`: longest input, or a generator's whole context."""

    input_kinds: tuple[str, ...]
    labels: tuple[str, ...]
    multi_label: bool
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where the bytes of a version came from; empty parts were not stated."""

    source: str = ""
    revision: str = ""
    parent_version: int = 0
    conversion: str = ""
    facts: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a version cannot be served: the artifact ("" is the whole), the rule, what to do."""

    path: str
    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable version of the model `model`; `digest` is the identity of its content."""

    model: str
    version: int
    state: VersionState
    artifacts: tuple[Artifact, ...]
    digest: str
    description: str
    labels: Mapping[str, str]
    metrics: Mapping[str, float]
    signature: Signature | None
    lineage: Lineage | None
    rejections: tuple[Rejection, ...]
    etag: str
    create_time: datetime | None
    ready_time: datetime | None
    creator: str

    @property
    def size_bytes(self) -> int:
        """The length of all artifacts together."""
        return sum(artifact.size_bytes for artifact in self.artifacts)


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name for a version. `gates` says in words what a version needs to be pointed to."""

    model: str
    alias: str
    version: int
    gates: tuple[str, ...]
    etag: str
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class Split:
    """One share of a traffic policy: a version or an alias, and its relative weight."""

    version: int | None
    alias: str | None
    weight: int


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """How calls that name neither version nor alias are spread. `shadow_version` 0: none."""

    model: str
    splits: tuple[Split, ...]
    sticky_key: str
    shadow_version: int
    etag: str
    update_time: datetime | None


@dataclass(frozen=True, slots=True)
class Resolution:
    """The version that a reference means now, and what chose it: "alias", "traffic_policy", ..."""

    version: Version
    chosen_by: str


Resource: TypeAlias = Model | Version | Alias | TrafficPolicy


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One step of a watch.

    `kind` "snapshot": `resource` as it stood; "created", "updated", "deleted": a change, with the
    resource `before` and after (`resource`), who made it, when, and in which request; "bookmark":
    nothing more to tell up to `revision`, and with `snapshot_complete` the end of the snapshot.
    `revision` is where to resume: after this event everything up to it is known (except within a
    snapshot). `name` is the full name, such as "models/sentiment/aliases/live".
    """

    kind: Literal["snapshot", "created", "updated", "deleted", "bookmark"]
    revision: int
    name: str = ""
    resource: Resource | None = None
    before: Resource | None = None
    actor: str = ""
    request_id: str = ""
    commit_time: datetime | None = None
    snapshot_complete: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One change, as the history keeps it.

    `name` is the full name, such as "models/sentiment/aliases/live". `before` is None where it was
    created, `after` where it was deleted. `actor` "": authentication is off.
    """

    revision: int
    kind: Literal["created", "updated", "deleted"]
    name: str
    before: Resource | None
    after: Resource | None
    actor: str
    request_id: str
    commit_time: datetime | None


@dataclass(frozen=True, slots=True)
class Source:
    """A place to import from; `kind` is "huggingface", "object_store" or "folder"."""

    source: str
    kind: str


@dataclass(frozen=True, slots=True)
class ProfilePoint:
    """Compute time in microseconds of a batch of items of `length` tokens (1: no tokens)."""

    batch_size: int
    length: int
    p50_us: int
    p95_us: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A measured latency curve; `fingerprint` is the host that it holds for."""

    model: str
    version: int
    fingerprint: str
    points: tuple[ProfilePoint, ...]
    measure_time: datetime | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a push or a pull is, in bytes: of the file at `path`, and of all that must move."""

    path: str
    done_bytes: int
    size_bytes: int
    all_done_bytes: int
    all_size_bytes: int
