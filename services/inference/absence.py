"""Why a model cannot answer: unknown, of another task, on its way, broken, or put away. Pure."""

from collections.abc import Mapping

from services.inference.loaded import Key, Loaded, RunnerT, Wanted
from services.inference.pointers import LIVE
from services.runtime.catalog import Catalog, VersionEntry
from services.runtime.errors import (
    ALIAS_NOT_FOUND,
    MODEL_NOT_LOADED,
    VERSION_NOT_FOUND,
    WRONG_TASK,
    FailedPrecondition,
    GristmillError,
    ModelNotReady,
    NotFound,
)


def why(
    catalog: Catalog, task: str, wanted: Wanted, loaded: Mapping[Key, Loaded[RunnerT]]
) -> GristmillError:
    """The error of a reference that means nothing that is ready."""
    entry = catalog.models.get(wanted.model)
    if entry is None or (entry.task == task and not entry.pointed_at()):
        return NotFound(
            f"there is no model {wanted.model!r} here", resource=("model", wanted.model)
        )
    if entry.task != task:
        return FailedPrecondition(f"{wanted.model} is a model for {entry.task}", reason=WRONG_TASK)
    version = wanted.version or entry.aliases.get(wanted.alias or LIVE, 0)
    if not version and not wanted.alias:
        version = max(entry.pointed_at(), default=0)  # only a traffic policy points anywhere
    if not version:
        return NotFound(
            f"{wanted.model} has no alias {wanted.alias or LIVE!r}", reason=ALIAS_NOT_FOUND
        )
    here = loaded.get((wanted.model, version))
    if here is not None and here.state in ("loading", "failed"):
        return ModelNotReady(
            f"{wanted.model} version {version} is {here.state}", metadata={"state": here.state}
        )
    return NotFound(
        f"{wanted.model} version {version} is not loaded here",
        reason=MODEL_NOT_LOADED,
        resource=("model", wanted.model),
    )


def known(
    catalog: Catalog, task: str, wanted: Wanted, loaded: Mapping[Key, Loaded[RunnerT]]
) -> list[VersionEntry]:
    """The registry's versions that a reference means, loaded or not; raises where it has none.

    A model alone means what its traffic policy gives calls to, else what its alias `live` means.
    """
    entry = catalog.models.get(wanted.model)
    if entry is None:
        raise NotFound(f"the registry has no model {wanted.model!r}")
    if entry.task != task:
        raise why(catalog, task, wanted, loaded)
    numbers = [wanted.version or entry.aliases.get(wanted.alias or LIVE, 0)]
    if entry.policy is not None and not wanted.version and not wanted.alias:
        numbers = entry.policy.versions(entry.aliases)
    found = [entry.versions[number] for number in numbers if number in entry.versions]
    if not found:
        raise NotFound(
            f"{wanted.model} has no ready version for this reference", reason=VERSION_NOT_FOUND
        )
    return found
