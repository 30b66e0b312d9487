"""Values as bytes for a cache outside this process: told apart, checked, and never run.

    version (1) | seal (16) | tokens (4) | truncated (1) | arrays (2), each:
        name | type | dimensions (1, then 8 each) | data         each counted by 4 bytes

Little-endian. The seal is a keyed BLAKE2b over key and content, so that what others wrote, what
was cut or changed, and what belongs to another key are all no answer. Elements that are objects
have a letter, `b` or `s`, and a length before each.
"""

import hmac
import math
import re
import struct
from hashlib import blake2b

import numpy as np

from services.inference.cache.keys import PLAIN, Key, derived
from services.inference.cache.values import Value, frozen
from services.inference.items import Array

VERSION = 1
SEAL_BYTES = 16
_HEAD = struct.Struct("<IBH")
_LENGTH = struct.Struct("<I")
_TYPE = re.compile(rf"[<>|][{PLAIN}]\d+|\|O")
MOST_DIMENSIONS = 32


class Sealer:
    """Packs and unpacks under a secret that replicas share."""

    def __init__(self, secret: bytes) -> None:
        self._secret = derived(secret, b"seal")

    def seal(self, key: Key, value: Value) -> bytes | None:
        """The bytes of a value; None where it has arrays of a type that bytes cannot tell."""
        try:
            body = _packed(value)
        except (TypeError, ValueError, struct.error):
            return None
        return bytes([VERSION]) + self._seal(key, body) + body

    def open(self, key: Key, data: bytes) -> Value:
        """The value that was sealed for `key`; ValueError for anything else."""
        start = 1 + SEAL_BYTES
        if len(data) < start or data[0] != VERSION:
            raise ValueError("another version, or cut")
        body = data[start:]
        if not hmac.compare_digest(self._seal(key, body), data[1:start]):
            raise ValueError("not what was sealed for this key")
        try:
            return _Reader(body).value()
        except (struct.error, TypeError, UnicodeDecodeError) as error:
            raise ValueError("sealed, and malformed") from error

    def _seal(self, key: Key, body: bytes) -> bytes:
        seal = blake2b(key=self._secret, digest_size=SEAL_BYTES)
        seal.update(_counted(key))
        seal.update(body)
        return seal.digest()


def _packed(value: Value) -> bytes:
    parts = [_HEAD.pack(value.tokens, value.truncated, len(value.arrays))]
    for name, values in value.arrays.items():
        if values.dtype.kind not in PLAIN + "O":
            raise TypeError("no plain numbers")
        parts.append(_counted(name.encode()))
        parts.append(_counted(values.dtype.str.encode()))
        parts.append(struct.pack(f"<B{values.ndim}Q", values.ndim, *values.shape))
        is_objects = values.dtype.kind == "O"
        parts.append(_counted(_objects(values) if is_objects else values.tobytes()))
    return b"".join(parts)


def _objects(values: Array) -> bytes:
    parts: list[bytes] = []
    for value in values.flat:
        if not isinstance(value, bytes | str):
            raise TypeError("neither bytes nor text")
        letter, data = (b"b", value) if isinstance(value, bytes) else (b"s", value.encode())
        parts += (letter, _counted(data))
    return b"".join(parts)


def _counted(part: bytes) -> bytes:
    return _LENGTH.pack(len(part)) + part


class _Reader:
    """Reads from the front, and never past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self) -> Value:
        tokens, truncated, count = _HEAD.unpack(self._take(_HEAD.size))
        arrays = dict([self._array() for _ in range(count)])
        if len(arrays) != count or truncated > 1:
            raise ValueError("malformed")
        self._end()
        return Value(arrays, tokens, truncated=bool(truncated))

    def _array(self) -> tuple[str, Array]:
        name = self._counted().decode()
        kind = self._counted().decode("ascii")
        dimensions = self._take(1)[0]
        if not _TYPE.fullmatch(kind) or dimensions > MOST_DIMENSIONS:
            raise ValueError("malformed")
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        data = self._counted()
        if kind == "|O":
            return name, _Reader(data)._objects(shape)
        dtype = np.dtype(kind)
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError("malformed")
        return name, np.ndarray(shape, dtype, data)

    def _objects(self, shape: tuple[int, ...]) -> Array:
        elements: list[bytes | str] = []
        while self._at < len(self._data):
            letter, element = self._take(1), self._counted()
            if letter not in (b"b", b"s"):
                raise ValueError("malformed")
            elements.append(element if letter == b"b" else element.decode())
        found = np.empty(len(elements), dtype=np.object_)
        found[:] = elements
        return frozen(found.reshape(shape))

    def _counted(self) -> bytes:
        return self._take(_LENGTH.unpack(self._take(_LENGTH.size))[0])

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ValueError("cut")
        taken, self._at = self._data[self._at : end], end
        return taken

    def _end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("too long")
