"""SHA-256 beside what else is done with the same bytes: on most machines it takes as long."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor

# Smaller runs are hashed sooner than a thread is woken.
INLINE_BYTES = 64 << 10
_pool = ThreadPoolExecutor(os.cpu_count(), "hashing")


class Hashing:
    """The digest of bytes as they come; the last run of them may still be under way."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._running: Future[None] | None = None

    def update(self, data: bytes) -> None:
        """Take more bytes, which must not change any more."""
        self._wait()
        if len(data) < INLINE_BYTES:
            self._hasher.update(data)
        else:
            self._running = _pool.submit(self._hasher.update, data)

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""
        self._wait()
        return self._hasher.hexdigest()

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()
