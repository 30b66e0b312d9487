"""What an answer is found under: a digest of everything that the answer depends on.

SHA-256 over the version of this scheme, the tenant's salt, the model's digest, the options that
change the answer, and the item; equal keys mean equal questions of the same tenant. The salt is an
HMAC of the identity under a secret: nobody learns by asking, nor by reading the cache, what
another tenant asked. Knows no cache.
"""

import hmac
from array import array
from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np

from services.inference.items import (
    Array,
    FeaturesItem,
    ImageItem,
    Item,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.runtime.errors import GristmillError

Key = bytes
# Of the keys and of what is stored under them: a change of either makes other keys.
SCHEMA = b"gristmill response cache 1"
LEAST_SECRET_BYTES = 16
# Identities come from callers of the gateway too: beyond this many scopes all are forgotten.
MOST_SCOPES = 4096
# Types that the bytes, the type's name and the shape tell whole.
PLAIN = "biufcSU"


class Keys:
    """Makes the keys of a process; replicas that share a cache share the secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < LEAST_SECRET_BYTES:
            raise ValueError(f"the salt needs at least {LEAST_SECRET_BYTES} bytes")
        self._secret = derived(secret, b"tenant")
        self._scopes: dict[tuple[str, str, bool], bytes] = {}

    def of(
        self,
        identity: str,
        digest: str,
        items: Sequence[Item | GristmillError],
        *,
        refuse_longer: bool = False,
    ) -> list[Key | None]:
        """The key of each item; None for what has none. May be called from any thread."""
        scope = self._scope(identity, digest, refuse_longer)
        return [_key(scope, item) for item in items]

    def _scope(self, identity: str, digest: str, refuse_longer: bool) -> bytes:
        """The part of the key that is not the item."""
        known = self._scopes.get((identity, digest, refuse_longer))
        if known is not None:
            return known
        salt = hmac.digest(self._secret, _text(identity), "sha256")
        told = (SCHEMA, salt, _text(digest), b"\1" if refuse_longer else b"\0")
        scope = sha256(b"".join(_counted(part) for part in told)).digest()
        if len(self._scopes) >= MOST_SCOPES:
            self._scopes.clear()
        self._scopes[identity, digest, refuse_longer] = scope
        return scope


def derived(secret: bytes, purpose: bytes) -> bytes:
    """A secret for one purpose: what is seen of one use tells nothing of another."""
    return hmac.digest(secret, SCHEMA + b" " + purpose, "sha256")


def weight(items: Sequence[Item | GristmillError]) -> int:
    """About how many bytes making the keys goes through."""
    return sum([_weight(item) for item in items])


def _weight(item: Item | GristmillError) -> int:
    if isinstance(item, FeaturesItem):
        return 8 * len(item.values)
    if isinstance(item, TextItem):
        return len(item.text)
    if isinstance(item, TextPairItem):
        return len(item.first) + len(item.second)
    if isinstance(item, ImageItem):
        return len(item.data)
    if isinstance(item, TensorsItem):
        return sum([one.nbytes for one in item.tensors.values()])
    return 0


def _key(scope: bytes, item: Item | GristmillError) -> Key | None:
    """The scope has a fixed length and a kind one letter, so what follows begins in one place."""
    try:
        if isinstance(item, FeaturesItem):
            return sha256(scope + b"f" + _floats(item)).digest()
        if isinstance(item, TextItem):
            return sha256(scope + b"t" + _text(item.text)).digest()
        if isinstance(item, TextPairItem):
            return sha256(scope + b"p" + _counted(_text(item.first)) + _text(item.second)).digest()
        if isinstance(item, ImageItem):
            digest = sha256(scope + b"i")
            digest.update(item.data)
            return digest.digest()
        if isinstance(item, TensorsItem):
            digest = sha256(scope + b"n")
            for part in _tensors(item):
                digest.update(part)
            return digest.digest()
    except (TypeError, ValueError, OverflowError):
        # No item of a kind known here: it is computed, and says itself what is wrong with it.
        return None
    return None


def _floats(item: FeaturesItem) -> bytes:
    """In 64 bits, which hold any number of 32: what a model in 64 tells apart must differ here."""
    values = item.values
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError("no vector")
        return values.astype(np.float64).tobytes()
    return array("d", values).tobytes()


def _tensors(item: TensorsItem) -> Iterator[bytes]:
    for name in sorted(item.tensors):
        values = item.tensors[name]
        yield _counted(_text(name))
        yield _counted(values.dtype.str.encode())
        yield _counted(repr(values.shape).encode())
        if values.dtype.kind == "O":
            yield from _objects(values)
        elif values.dtype.kind in PLAIN:
            yield _counted(values.tobytes())
        else:
            raise TypeError("no plain numbers")


def _objects(values: Array) -> Iterator[bytes]:
    for value in values.flat:
        if isinstance(value, bytes):
            yield b"b" + _counted(value)
        elif isinstance(value, str):
            yield b"s" + _counted(_text(value))
        else:
            raise TypeError("neither bytes nor text")


def _counted(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


def _text(text: str) -> bytes:
    """Any text, each differently: also what no UTF-8 can say."""
    return text.encode("utf-8", "surrogatepass")
