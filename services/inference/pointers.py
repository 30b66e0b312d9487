"""What aliases and traffic policies mean here: their last versions that became ready. Pure.

The registry says where they point; a version that is not ready yet is not meant by anything.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from services.inference.loaded import Key, Wanted
from services.runtime import traffic
from services.runtime.catalog import ModelEntry, PolicyEntry

LIVE = "live"
IsReady = Callable[[Key], bool]


@dataclass(slots=True)
class Pointers:
    """The aliases and the policy of each model."""

    _aliases: dict[str, dict[str, int]] = field(default_factory=dict)
    """By model and name: the version."""
    _policies: dict[str, PolicyEntry] = field(default_factory=dict)
    """The last policy of each model all of whose versions became ready."""

    def settle(self, wanted: Mapping[str, ModelEntry], is_ready: IsReady) -> None:
        """Follow the registry as far as what is ready allows."""
        for model, entry in wanted.items():
            mine = self._aliases.setdefault(model, {})
            mine |= {a: v for a, v in entry.aliases.items() if is_ready((model, v))}
            gone = [
                a for a, v in mine.items() if a not in entry.aliases or not is_ready((model, v))
            ]
            for alias in gone:
                del mine[alias]
            self._settle_policy(model, entry, mine, is_ready)
        for known in (self._policies, self._aliases):
            for model in [m for m in known if m not in wanted]:
                del known[model]

    def aliases_of(self, key: Key) -> list[str]:
        """The aliases that mean this version here."""
        model, version = key
        return sorted(a for a, v in self._aliases.get(model, {}).items() if v == version)

    def mean(self, key: Key) -> bool:
        """Whether an alias or a share of the policy means this version here."""
        model, version = key
        aliases, policy = self._aliases.get(model, {}), self._policies.get(model)
        if version in aliases.values():
            return True
        return policy is not None and version in policy.versions(aliases)

    def chosen(self, model: str, wanted: Wanted) -> int:
        """The version that an alias means, or that the policy draws; 0 where none is meant."""
        aliases = self._aliases.get(model, {})
        policy = None if wanted.alias else self._policies.get(model)
        if policy is None:
            return aliases.get(wanted.alias or LIVE, 0)
        value = wanted.metadata.get(policy.sticky_key, "") if policy.sticky_key else ""
        draw = traffic.draw(model, value) if value else random.random()
        return policy.versions(aliases)[traffic.pick(policy.splits, draw)]

    def shadow(self, key: Key, wanted: Wanted) -> Key | None:
        """The version that only watches a call that this one answers."""
        if wanted.version or wanted.alias:
            return None
        policy = self._policies.get(key[0])
        if policy is None or policy.shadow_version in (0, key[1]):
            return None
        return key[0], policy.shadow_version

    def _settle_policy(
        self, model: str, entry: ModelEntry, aliases: Mapping[str, int], is_ready: IsReady
    ) -> None:
        """A policy takes over when all that it gives calls to is ready; until then the last one."""
        for policy in (entry.policy, self._policies.get(model)):
            if policy is not None and entry.policy is not None:
                shares = zip(policy.splits, policy.versions(aliases), strict=True)
                if all(is_ready((model, v)) for split, v in shares if split.weight):
                    self._policies[model] = policy
                    return
        self._policies.pop(model, None)
