"""A zip file's directory: what is in it, and whether unpacking could harm. Unpacks nothing."""

import stat
import struct
from dataclasses import dataclass
from typing import BinaryIO

from services.registry.checks.files import plain
from services.registry.checks.findings import RefusedError, quoted

RULE = "archive-refused"
MAX_MEMBERS, MAX_DIRECTORY_BYTES = 65_535, 32 * 2**20
MAX_TOTAL_BYTES, MAX_RATIO = 256 * 2**30, 100
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR, _END_64 = struct.Struct("<4sIQI"), struct.Struct("<4sQHHIIQQQQ")
_MEMBER = struct.Struct("<4sBBHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_MOST_COMMENT = 65_535
UNKNOWN_32 = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the directory."""

    name: str
    packed: int
    size: int
    offset: int
    mode: int
    encrypted: bool


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the entries lie, and how many there are."""

    offset: int
    size: int
    count: int


def directory(stream: BinaryIO, size: int) -> Directory | None:
    """The directory at the end of the file, where there is one."""
    start = max(0, size - _MOST_COMMENT - _END.size)
    stream.seek(start)
    tail = stream.read(size - start)
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        found = _ending(stream, tail, at, start)
        if found is not None and _points_at_members(stream, found):
            return found
        at = tail.rfind(b"PK\5\6", 0, at)
    return None


def members(stream: BinaryIO, listed: Directory) -> list[Member]:
    """The entries of a directory that is not too long."""
    if listed.count > MAX_MEMBERS or listed.size > MAX_DIRECTORY_BYTES:
        raise RefusedError(RULE, f"lists {listed.count} members, {MAX_MEMBERS} at most")
    stream.seek(listed.offset)
    data, position = stream.read(listed.size), 0
    found: list[Member] = []
    while position < len(data):
        member, position = _member(data, position)
        found.append(member)
        if len(found) > MAX_MEMBERS:
            break
    if len(found) != listed.count:
        raise RefusedError(RULE, "its directory is not in order")
    return found


def check(stream: BinaryIO, size: int, found: list[Member]) -> None:
    """Refuse what unpacking could write elsewhere, or what would not end."""
    if len({member.name for member in found}) != len(found):
        raise RefusedError(RULE, "has two members of one name")
    total = sum(member.size for member in found)
    if total > MAX_TOTAL_BYTES or total > MAX_RATIO * max(size, 1):
        raise RefusedError(RULE, f"would unpack to {total} bytes")
    if sum(member.packed for member in found) > size:
        raise RefusedError(RULE, "has members that overlap")
    for member in found:
        _check_member(stream, size, member)


def _check_member(stream: BinaryIO, size: int, member: Member) -> None:
    parts = member.name.removesuffix("/").split("/")
    if not all(plain(part) for part in parts):
        said = f"member {quoted(member.name)} must be a relative path of plain names"
        raise RefusedError(RULE, said)
    if stat.S_ISLNK(member.mode) or member.encrypted:
        raise RefusedError(RULE, f"member {quoted(member.name)} is a link, or encrypted")
    stream.seek(min(member.offset, size))
    local = stream.read(_LOCAL.size)
    if len(local) < _LOCAL.size or local[:4] != b"PK\3\4":
        raise RefusedError(RULE, f"member {quoted(member.name)} is not where the directory says")
    name_bytes = _LOCAL.unpack(local)[9]
    if stream.read(name_bytes) != member.name.encode("utf-8", "surrogateescape"):
        raise RefusedError(RULE, f"member {quoted(member.name)} has another name where it lies")


def _ending(stream: BinaryIO, tail: bytes, at: int, start: int) -> Directory | None:
    if at + _END.size > len(tail):
        return None
    _, _, _, _, count, size, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        return None
    if start + at >= _LOCATOR.size:
        stream.seek(start + at - _LOCATOR.size)
        sign, _, where, _ = _LOCATOR.unpack(stream.read(_LOCATOR.size))
        if sign == b"PK\6\7":
            return _ending_64(stream, where, start + at)
    # Offsets may count from before the archive where something was put in front of it.
    return Directory(start + at - size, size, count) if offset + size <= start + at else None


def _ending_64(stream: BinaryIO, where: int, end: int) -> Directory | None:
    if where + _END_64.size > end:
        return None
    stream.seek(where)
    fields = _END_64.unpack(stream.read(_END_64.size))
    count, size, offset = fields[7], fields[8], fields[9]
    if fields[0] != b"PK\6\6" or offset + size > where:
        return None
    return Directory(offset, size, count)


def _points_at_members(stream: BinaryIO, listed: Directory) -> bool:
    stream.seek(max(0, listed.offset))
    return listed.count == 0 or stream.read(4) == b"PK\1\2"


def _member(data: bytes, position: int) -> tuple[Member, int]:
    if position + _MEMBER.size > len(data):
        raise RefusedError(RULE, "its directory is not in order")
    field = _MEMBER.unpack_from(data, position)
    sign, flags, packed, size = field[0], field[4], field[9], field[10]
    name_bytes, extra_bytes, comment_bytes = field[11:14]
    attributes, offset = field[16], field[17]
    if sign != b"PK\1\2":
        raise RefusedError(RULE, "its directory is not in order")
    begin = position + _MEMBER.size
    name = data[begin : begin + name_bytes].decode("utf-8", "surrogateescape")
    extra = data[begin + name_bytes : begin + name_bytes + extra_bytes]
    size, packed, offset = _wide(extra, size, packed, offset)
    member = Member(name, packed, size, offset, attributes >> 16, bool(flags & 1))
    return member, begin + name_bytes + extra_bytes + comment_bytes


def _wide(extra: bytes, *numbers: int) -> tuple[int, int, int]:
    """Size, packed size and offset, from the zip64 field where they do not fit."""
    wide, position = b"", 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            wide = extra[position + 4 : position + 4 + length]
        position += 4 + length
    found = []
    for number in numbers:
        if number == UNKNOWN_32 and len(wide) >= 8:
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        found.append(number)
    return found[0], found[1], found[2]
