"""What the registry says of models, as a follower knows it. Pure: no wire, no clock.

A catalog is changed by applying what the registry's Watch sends; it can be written to JSON, so
that a process can start while the registry is away.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from services.runtime.traffic import Split


@dataclass(frozen=True, slots=True)
class ArtifactEntry:
    """One file of a version."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A version that can be served."""

    model: str
    version: int
    digest: str
    artifacts: tuple[ArtifactEntry, ...]


@dataclass(frozen=True, slots=True)
class ProfileEntry:
    """What batches of a version cost on one kind of host."""

    fingerprint: str
    """Equal to that of a process which runs the version in the same way on such a host."""
    points: tuple[tuple[int, float], ...]
    """Padded tokens of a batch, and its median compute time in seconds."""


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """How calls that name neither version nor alias are spread."""

    splits: tuple[Split, ...]
    sticky_key: str = ""
    """The call metadata key whose value chooses; empty: each call is drawn by itself."""
    shadow_version: int = 0

    def versions(self, aliases: Mapping[str, int]) -> list[int]:
        """The version of each share, 0 where its alias means none."""
        return [split.version or aliases.get(split.alias, 0) for split in self.splits]


@dataclass(slots=True)
class ModelEntry:
    """A model with its servable versions, its aliases and its traffic policy."""

    task: str
    archived: bool = False
    versions: dict[int, VersionEntry] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    policy: PolicyEntry | None = None

    def pointed_at(self, *, shadows: bool = False) -> set[int]:
        """The versions that an alias or the policy points to; `shadows`, its shadow too."""
        found = set(self.aliases.values())
        if self.policy is not None:
            found.update(self.policy.versions(self.aliases))
            if shadows:
                found.add(self.policy.shadow_version)
        return found - {0}


@dataclass(slots=True)
class Catalog:
    """All models known, at one revision of the registry."""

    revision: int | None = None
    models: dict[str, ModelEntry] = field(default_factory=dict)

    def set_model(self, model: str, task: str, *, archived: bool) -> None:
        """A model came or changed."""
        entry = self.models.setdefault(model, ModelEntry(task))
        entry.task, entry.archived = task, archived

    def set_version(self, version: VersionEntry, *, servable: bool) -> None:
        """A version came or changed its state."""
        entry = self.models.get(version.model)
        if entry is None:
            return
        if servable:
            entry.versions[version.version] = version
        else:
            entry.versions.pop(version.version, None)

    def set_alias(self, model: str, alias: str, version: int | None) -> None:
        """An alias moved; None: it is gone."""
        entry = self.models.get(model)
        if entry is None:
            return
        if version is None:
            entry.aliases.pop(alias, None)
        else:
            entry.aliases[alias] = version

    def set_policy(self, model: str, policy: PolicyEntry | None) -> None:
        """A traffic policy came or changed; None: it is gone."""
        entry = self.models.get(model)
        if entry is not None:
            entry.policy = policy

    def remove_model(self, model: str) -> None:
        """A model is gone."""
        self.models.pop(model, None)

    def wanted(self, task: str, only: frozenset[str] = frozenset()) -> dict[str, ModelEntry]:
        """What a process of this task serves: models with a `live` alias or a traffic policy,
        or those it is told."""
        return {
            name: entry
            for name, entry in self.models.items()
            if entry.task == task
            and not entry.archived
            and (name in only if only else "live" in entry.aliases or entry.policy is not None)
        }

    def to_json(self) -> dict[str, Any]:
        """The catalog as JSON."""
        return {
            "revision": self.revision,
            "models": {name: asdict(entry) for name, entry in self.models.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The catalog that `to_json` wrote."""
        catalog = cls(value["revision"])
        for name, entry in value["models"].items():
            versions = {
                int(number): VersionEntry(
                    v["model"],
                    v["version"],
                    v["digest"],
                    tuple(ArtifactEntry(**artifact) for artifact in v["artifacts"]),
                )
                for number, v in entry["versions"].items()
            }
            catalog.models[name] = ModelEntry(
                entry["task"],
                entry["archived"],
                versions,
                dict(entry["aliases"]),
                _policy(entry.get("policy")),
            )
        return catalog


def _policy(value: dict[str, Any] | None) -> PolicyEntry | None:
    if value is None:
        return None
    splits = tuple(Split(**split) for split in value["splits"])
    return PolicyEntry(splits, value["sticky_key"], value["shadow_version"])
