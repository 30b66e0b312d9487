"""Pulls a version from the registry into a folder, as a flow; blocks on nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from gristmill_client import _registry_flows as registry
from gristmill_client import errors
from gristmill_client._files import PartialFile, destination, has_content
from gristmill_client._manifest import MANIFEST
from gristmill_client._steps import Download, Flow, Patience, Pause, work
from gristmill_client._tally import OnProgress, Tally
from gristmill_client.resources import Artifact, Version


def pull(
    name: str,
    to: str | Path,
    version: int | None,
    alias: str | None,
    on_progress: OnProgress | None,
) -> Flow[Version]:
    """The whole pull: see Models.pull."""
    folder = Path(to)
    chosen = (yield from registry.resolve(name, version, alias)).version
    # The manifest comes last: a folder that has it has everything.
    artifacts = sorted(chosen.artifacts, key=lambda artifact: artifact.path == MANIFEST)
    places = {artifact: destination(folder, artifact.path) for artifact in artifacts}
    tally = Tally(artifacts, on_progress)
    source = registry.version_name(chosen.model, chosen.version)
    for artifact, place in places.items():
        report = tally.of(artifact)
        if (yield from work(partial(has_content, place, artifact))):
            report(artifact.size_bytes)
        else:
            yield from _fetch(source, artifact, place, report)
    return chosen


def _fetch(
    version: str, artifact: Artifact, place: Path, report: Callable[[int], None]
) -> Flow[None]:
    while True:
        file = yield from work(lambda: PartialFile(place, artifact))
        resumed = file.resumed
        try:
            yield from _download(version, artifact, file, report)
            yield from work(file.finish)
        except errors.DataLoss:
            file.discard()
            # The bytes of an earlier pull may have been at fault: once more from the start.
            if not resumed:
                raise
        else:
            return
        finally:
            file.close()


def _download(
    version: str, artifact: Artifact, file: PartialFile, report: Callable[[int], None]
) -> Flow[None]:
    patience = Patience()

    def on_written(size: int) -> None:
        patience.progressed()
        report(size)

    while not file.complete:
        try:
            yield Download(version, artifact.path, file, on_written)
        except errors.GristmillError as error:
            yield Pause(patience.pause(error))
