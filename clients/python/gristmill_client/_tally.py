"""Counts the bytes of a push or pull and reports them; knows neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from gristmill_client.resources import Artifact, Progress

OnProgress: TypeAlias = Callable[[Progress], None]


class Tally:
    """How much of several artifacts has moved."""

    def __init__(self, artifacts: Iterable[Artifact], on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self._done = {artifact.path: 0 for artifact in artifacts}
        self._size = sum(artifact.size_bytes for artifact in artifacts)

    def of(self, artifact: Artifact) -> Callable[[int], None]:
        """What takes the bytes moved so far of one artifact."""

        def report(done: int) -> None:
            self._done[artifact.path] = done
            if self._on_progress is not None:
                self._on_progress(
                    Progress(
                        path=artifact.path,
                        done_bytes=done,
                        size_bytes=artifact.size_bytes,
                        all_done_bytes=sum(self._done.values()),
                        all_size_bytes=self._size,
                    )
                )

        return report
