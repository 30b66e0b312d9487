"""An object store as blocking calls: keys, bytes, and what the caller is told when one fails.

The calls block because those that await do not end well: their callbacks may still hold the
interpreter when it exits, and the process aborts (seen with obstore 0.12 on a busy machine).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import ObjectStore, from_url

from services.runtime.errors import Conflict, StorageFailed, StorageFull

SCHEMES = ("s3", "gs", "az", "memory")
# A store with this many parts of an object refuses more; some say 10,000, and none fewer.
MAX_PARTS = 9_000
PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
FULL = ("QuotaExceeded", "StorageFull", "InsufficientStorage", "507 Insufficient", "No space left")
RETRY: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=3),
        "base": 2,
    },
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its key, and what changes with its content."""

    key: str
    size_bytes: int
    modified: datetime
    etag: str | None


class Bucket:
    """The objects below one URL."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        """`options` are the store's own, such as endpoint and region; ValueError for a bad one."""
        config: Any = {key: value for key, value in options.items() if key != "allow_http"}
        client: Any = {"connect_timeout": "5s", "timeout": "120s"}
        if options.get("allow_http", "").lower() in ("1", "true", "yes"):
            client["allow_http"] = True
        self._store: ObjectStore
        if url.startswith("memory:"):
            self._store = from_url("memory:///")
            return
        try:
            self._store = from_url(url, config=config, client_options=client, retry_config=RETRY)
        except BaseError as error:
            raise ValueError(f"{url}: {str(error).splitlines()[0]}") from None

    def head(self, key: str) -> Entry | None:
        """What is known of an object; None where there is none."""
        with failures("bytes were looked for"):
            try:
                return _entry(obstore.head(self._store, key))
            except FileNotFoundError:
                return None

    def get(self, key: str, start: int, end: int, etag: str | None = None) -> memoryview:
        """The bytes of a range that is not empty; FileNotFoundError where there is no object.

        Fewer where the object ends earlier. Conflict where it is no longer the one of the etag.
        """
        options: obstore.GetOptions = {"range": (start, end)}
        if etag:
            options["if_match"] = etag
        with failures("bytes were read"):
            try:
                return memoryview(obstore.get(self._store, key, options=options).bytes())
            except PreconditionError:
                raise Conflict("the stored bytes were replaced; read them again") from None

    def put(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """One object at once: all of it, or nothing."""
        with failures("bytes were written"):
            try:
                obstore.put(self._store, key, data, use_multipart=False)
            except FileNotFoundError as error:
                raise StorageFailed("the registry's bucket does not exist") from error

    def put_stream(self, key: str, data: Iterator[bytes | memoryview], size_bytes: int) -> None:
        """One object in parts; where the iterator raises, nothing comes to be under the key."""
        with failures("bytes were written"), ahead(data) as coming:
            obstore.put(
                self._store,
                key,
                coming,
                use_multipart=True,
                chunk_size=max(PART_BYTES, -(-size_bytes // MAX_PARTS)),
                max_concurrency=PARTS_AT_ONCE,
            )

    def entries(self, prefix: str) -> Iterator[list[Entry]]:
        """The objects below a folder, in lists of up to 1,000."""
        with failures("objects were listed"):
            for page in obstore.list(self._store, prefix, chunk_size=1000):
                yield [_entry(meta) for meta in page]

    def delete(self, keys: list[str]) -> None:
        """Remove objects; one that is gone already is no error."""
        with failures("objects were deleted"):
            if keys:
                try:
                    obstore.delete(self._store, keys)
                except FileNotFoundError:
                    self._delete_each(keys)

    def _delete_each(self, keys: list[str]) -> None:
        for key in keys:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue


@contextmanager
def ahead(data: Iterator[bytes | memoryview]) -> Iterator[Iterator[bytes | memoryview]]:
    """The same items, taken one ahead in a thread: obstore cannot get while it puts in this one."""
    taken: Queue[bytes | memoryview | BaseException | None] = Queue(1)
    given_up = Event()

    def take() -> None:
        last: BaseException | None = None
        try:
            for item in data:
                taken.put(item)
                if given_up.is_set():
                    return
        except BaseException as error:
            last = error
        taken.put(last)

    def items() -> Iterator[bytes | memoryview]:
        while (item := taken.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = Thread(target=take, name="objects-ahead", daemon=True)
    thread.start()
    try:
        yield items()
    finally:
        given_up.set()
        while thread.is_alive():
            with suppress(Empty):
                taken.get(timeout=0.02)
        thread.join()


@contextmanager
def failures(doing: str) -> Iterator[None]:
    """Tell the caller in domain errors what the store refused; its own words stay in the log."""
    try:
        yield
    except BaseError as error:
        if any(mark in str(error) for mark in FULL):
            raise StorageFull(
                "the object store is full; what is durable stays, go on once there is room"
            ) from error
        raise StorageFailed(f"the object store of the registry failed while {doing}") from error


def _entry(meta: "obstore.ObjectMeta") -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])
