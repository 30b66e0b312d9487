"""What tests of sources share: all the files of a path, fetched."""

from pathlib import Path

from services.registry.sources.source import Listing, Source


def nothing(size_bytes: int) -> None:
    """Progress that nobody listens to."""


async def fetched(source: Source, listing: Listing, root: Path) -> dict[str, bytes]:
    """The bytes of every file of a listing."""
    found = {}
    root.mkdir(exist_ok=True)
    for number, file in enumerate(listing.files):
        target = root / str(number)
        await source.fetch(listing, file, target, nothing)
        found[file.path] = target.read_bytes()
    return found
