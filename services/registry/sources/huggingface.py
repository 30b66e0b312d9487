"""Models of the Hugging Face hub, each at a commit. Knows the hub's HTTP and no model.

Files are read in ranges, over the library's own session: its downloads end neither at once when
they are cancelled nor at the size that was listed. No code of a repository is ever loaded.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, get_async_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily
    build_hf_headers,
    hf_raise_for_status,
)

from services.registry.sources import source
from services.registry.sources.part import Part
from services.registry.sources.source import Listing, Progress, SourceFile
from services.runtime.errors import FailedPrecondition, InvalidRequest, UpstreamUnavailable

# Some mirrors' front ends serve no more than 50 GB in one response.
RANGE_BYTES = 8 << 30
WRITE_BYTES = 256 << 10
TIMEOUT_S = 30.0
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")
_LATER = (408, 425, 429)
_REFUSED = (401, 403)


class HuggingFaceSource:
    """The hub, or a mirror of it."""

    kind = "huggingface"

    def __init__(self, endpoint: str, token_file: Path | None = None) -> None:
        self._endpoint = endpoint
        self._token_file = token_file

    def check(self, path: str, revision: str) -> None:
        """A repository by its full name, at a full commit."""
        if not _REPOSITORY.fullmatch(path) or "--" in path or ".." in path:
            raise InvalidRequest.field("path", 'must be "organisation/name" of a repository')
        if not _COMMIT.fullmatch(revision):
            said = "must be a full commit, 40 hexadecimal digits: a branch or a tag may move"
            raise InvalidRequest.field("revision", f"{said}; pin it to a commit")

    async def list(self, path: str, revision: str) -> Listing:
        """All files of the commit."""
        token = await asyncio.to_thread(self._token)
        api = HfApi(endpoint=self._endpoint, token=token)
        with _failures(path):
            found = await asyncio.to_thread(
                api.model_info, path, revision=revision, files_metadata=True, timeout=TIMEOUT_S
            )
        if found.sha != revision:
            raise FailedPrecondition(f"{revision} is no commit of {path}")
        siblings = found.siblings or []
        if len(siblings) > source.MOST_LISTED:
            source.too_many()
        files = sorted(map(_file, siblings), key=lambda file: file.path)
        facts = {"endpoint": self._endpoint}
        return Listing(path=path, revision=revision, files=tuple(files), facts=facts)

    async def fetch(
        self, listing: Listing, file: SourceFile, target: Path, progress: Progress
    ) -> None:
        """Read ranges, from where the target ends."""
        url = hf_hub_url(
            listing.path, file.path, revision=listing.revision, endpoint=self._endpoint
        )
        token = await asyncio.to_thread(self._token)
        headers = build_hf_headers(token=token)
        with Part(target, progress) as part, _failures(file.path):
            if file.size_bytes is None or part.size > file.size_bytes:
                part.restart()
            async with get_async_session() as session:
                await _read(session, url, headers, file, part)

    def _token(self) -> str | bool:
        """The operator's token; False is none, also where the machine has one for its user."""
        if self._token_file is None:
            return False
        try:
            return self._token_file.read_text(encoding="utf-8").strip() or False
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition("the token file of this source cannot be read") from error


async def _read(
    session: httpx2.AsyncClient, url: str, headers: dict[str, str], file: SourceFile, part: Part
) -> None:
    size = file.size_bytes
    while size is None or part.size < size:
        before = part.size
        async with _response(session, url, headers, part, size) as response:
            await _take(response, file, part)
        if size is None:
            return
        if part.size == before:
            raise UpstreamUnavailable(f"the hub sent nothing of {file.path}")


async def _take(response: httpx2.Response, file: SourceFile, part: Part) -> None:
    """Write what comes, and also what came before the connection was cut."""
    taken = bytearray()
    try:
        async for data in response.aiter_bytes():
            if file.size_bytes is not None and part.size + len(taken) + len(data) > file.size_bytes:
                source.changed(file)
            taken += data
            if len(taken) >= WRITE_BYTES:
                # Cancelled, it is written all the same.
                data, taken = bytes(taken), bytearray()
                await part.write(data)
    finally:
        if taken:
            await part.write(bytes(taken))


@asynccontextmanager
async def _response(
    session: httpx2.AsyncClient, url: str, headers: dict[str, str], part: Part, size: int | None
) -> AsyncIterator[httpx2.Response]:
    """The bytes that follow those that are there, or all of them where the hub knows no ranges."""
    # What is compressed on the way cannot be resumed.
    asked = {**headers, "Accept-Encoding": "identity"}
    if size is not None:
        asked["Range"] = f"bytes={part.size}-{min(size, part.size + RANGE_BYTES) - 1}"
    async with session.stream("GET", url, headers=asked, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            if part.size:
                part.restart()
        elif not (said := _RANGE.fullmatch(response.headers.get("Content-Range", ""))) or (
            int(said[1]) != part.size
        ):
            raise UpstreamUnavailable("the hub sent another range than was asked for")
        yield response


def _file(sibling: Any) -> SourceFile:
    lfs = sibling.lfs
    return SourceFile(
        path=sibling.rfilename,
        size_bytes=lfs.size if lfs else sibling.size,
        sha256=lfs.sha256 if lfs else None,
        # That of a file in LFS is its pointer's.
        git_sha1=None if lfs else sibling.blob_id,
        tag=sibling.blob_id or "",
    )


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Tell of a failure in words of our own: the library's quote URLs, some of them signed."""
    try:
        yield
    except GatedRepoError:
        raise FailedPrecondition(
            f"{what} is gated, and the registry's token was not granted it"
        ) from None
    except RevisionNotFoundError:
        raise source.missing(f"{what} has no such commit") from None
    except RepositoryNotFoundError:
        raise source.missing(
            f"there is no {what}, or the registry's token may not see it"
        ) from None
    except EntryNotFoundError:
        raise source.missing(f"there is no {what} at this commit") from None
    except HfHubHTTPError as error:
        _refused(error, what)
    except OfflineModeIsEnabled:
        raise FailedPrecondition("the registry is set to use no hub (HF_HUB_OFFLINE)") from None
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise UpstreamUnavailable("the hub could not be reached") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UpstreamUnavailable("the hub answered what is no answer") from error


def _refused(error: HfHubHTTPError, what: str) -> None:
    status = error.response.status_code
    if status in _REFUSED:
        raise FailedPrecondition(f"the hub refused the registry's token for {what}") from None
    if status == 404:
        raise source.missing(f"the hub has no {what}") from None
    if status in _LATER or status >= 500:
        raise UpstreamUnavailable(f"the hub answered with status {status}") from None
    raise FailedPrecondition(f"the hub refused {what} with status {status}") from None
