"""Which files a process may still touch: the kernel's Landlock, for good. Knows no model."""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

# <linux/landlock.h>; the numbers of these calls are the same on all kinds of processor.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FIRST = (1 << 13) - 1
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE
_LOOK = _READ | _LIST | _EXECUTE


def allow_only(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Leave only these, and all below them; False where the kernel knows no Landlock.

    Paths that are not there are passed over. The process must have given up new privileges.
    """
    version = _call(_CREATE, None, 0, _ASK_VERSION)
    if version < 1:
        return False
    known = _FIRST | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = _call(_CREATE, struct.pack("=Q", known), 8, 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "no ruleset")
    try:
        for path in readable:
            _allow(ruleset, path, _LOOK)
        for path in writable:
            _allow(ruleset, path, known)
        if _call(_RESTRICT, ruleset, 0) != 0:
            raise OSError(ctypes.get_errno(), "the files cannot be closed off")
    finally:
        os.close(ruleset)
    return True


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not path.is_dir():
            access &= _OF_FILES
        if _call(_ADD, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, place), 0) != 0:
            raise OSError(ctypes.get_errno(), "a path cannot be left open")
    finally:
        os.close(place)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    given = [a if a is None or isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    return int(libc.syscall(ctypes.c_long(number), *given))
