"""What content-addressed storage is made of wherever it lies: digests, what is known of them."""

import re
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime

from services.runtime.errors import (
    ARTIFACT_NOT_FOUND,
    DataLoss,
    InvalidRequest,
    NotFound,
    OutOfRange,
)

READ_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies under a digest: its bytes so far, and when they last changed (UTC)."""

    digest: str
    size_bytes: int
    modified: datetime


class Remembered:
    """What this process found out about blobs, each fact as long as the blob stays as it was.

    Holds so many facts at most, and forgets the one that was asked for longest ago.
    """

    def __init__(self, limit: int = 65_536) -> None:
        self._facts: OrderedDict[str, Hashable] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def holds(self, digest: str, state: Hashable) -> bool:
        """Whether the fact was found for the blob in just this state."""
        with self._lock:
            if self._facts.get(digest) != state:
                return False
            self._facts.move_to_end(digest)
            return True

    def add(self, digest: str, state: Hashable) -> None:
        """The fact holds for the blob in this state."""
        with self._lock:
            self._facts[digest] = state
            self._facts.move_to_end(digest)
            if len(self._facts) > self._limit:
                self._facts.popitem(last=False)


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 as the contract writes it."""
    return _DIGEST.fullmatch(text) is not None


def checked(digest: str) -> str:
    """The digest, which may now be part of a name; InvalidRequest where it is none."""
    if not is_digest(digest):
        raise InvalidRequest.field("sha256", "must be 64 hexadecimal digits in lower case")
    return digest


def end_of(size_bytes: int, offset: int, length: int) -> int:
    """Where a read ends, `length` 0 being all the rest; OutOfRange past the end."""
    if offset > size_bytes:
        raise OutOfRange(f"offset {offset} lies past the end, {size_bytes}")
    return min(size_bytes, offset + length) if length else size_bytes


def missing() -> NotFound:
    """There is no blob of this digest."""
    return NotFound("its bytes were not uploaded yet", reason=ARTIFACT_NOT_FOUND)


def corrupt(digest: str) -> DataLoss:
    """What is stored is not what its name says."""
    return DataLoss("the stored bytes do not match", metadata={"sha256": digest})


def cut_short(digest: str) -> DataLoss:
    """Less is stored than was acknowledged."""
    return DataLoss("the stored bytes end early", metadata={"sha256": digest})


def mismatch(declared: str, received: str) -> DataLoss:
    """What came is not what was declared."""
    return DataLoss(
        "the bytes received do not match the declared SHA-256; send them again",
        metadata={"declared": declared, "received": received},
    )
