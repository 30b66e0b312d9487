"""Page sizes and tokens (AIP-158). A token holds the key of the last entry shown."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.runtime.errors import InvalidRequest

T = TypeVar("T")
DEFAULT, MOST = 50, 1000


def size(asked: int) -> int:
    """How many entries to show."""
    if asked < 0:
        raise InvalidRequest.field("page_size", "must be at least 0")
    return min(asked, MOST) if asked else DEFAULT


def after(token: str) -> str:
    """The key that a page begins after; empty for the first page."""
    if not token:
        return ""
    try:
        # Strict: what lies outside the alphabet would be dropped, and the list begin anew.
        return base64.b64decode(token.encode("ascii"), b"-_", validate=True).decode("utf-8")
    except (binascii.Error, UnicodeError):
        raise InvalidRequest.field("page_token", "is not one that this server gave") from None


def before(token: str) -> int:
    """The number that a page, newest first, begins before."""
    key = after(token)
    if not key:
        return 2**62
    if not key.isdecimal() or len(key) > 18:
        raise InvalidRequest.field("page_token", "is not one that this server gave")
    return int(key)


def cut(entries: Sequence[T], shown: int, key: Callable[[T], str]) -> tuple[Sequence[T], str]:
    """The page, and the token of the next where there is more."""
    if len(entries) <= shown:
        return entries, ""
    page = entries[:shown]
    return page, base64.urlsafe_b64encode(key(page[-1]).encode()).decode("ascii")
