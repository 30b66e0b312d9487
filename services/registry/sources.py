"""Where models may be imported from: what the operator configured, and nothing else."""

from collections.abc import Mapping

from services.runtime.errors import SOURCE_NOT_FOUND, NotFound


class Sources:
    """The configured sources by their ids."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = kinds

    def check(self, source: str, path: str, revision: str) -> None:
        """Refuse a source that is not configured, or a path or revision that it cannot have."""
        if source not in self.kinds:
            raise NotFound(
                f"no source {source!r} is configured",
                reason=SOURCE_NOT_FOUND,
                resource=("source", source),
            )
