"""Tells a pickle by its first opcodes, without unpickling. Knows no archive."""

import re

HEAD_BYTES = 64 * 1024
MAX_OPCODES = 64
_NONE, _LINE, _TWO_LINES = 0, -1, -2
_U8, _U32, _U64 = -11, -14, -18
# By opcode: how its argument is written - so many bytes, lines of text, or a counted string.
_ARGUMENTS = {
    **dict.fromkeys(
        b"(.012NQRabdeostu]})l\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98", 0
    ),
    **dict.fromkeys(b"hqK\x82\x80", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"jrJ\x84", 4),
    **dict.fromkeys(b"G\x95", 8),
    **dict.fromkeys(b"IFLPSVgp", _LINE),
    **dict.fromkeys(b"ci", _TWO_LINES),
    **dict.fromkeys(b"UC\x8a\x8c", _U8),
    **dict.fromkeys(b"XBT\x8b", _U32),
    **dict.fromkeys(b"\x8d\x8e\x96", _U64),
}
# What calls, imports or ends: from here on an unpickler may have run something.
_TELLING = frozenset(b"cRiobQP.\x81\x82\x83\x84\x92\x93")
_TEXTUAL = re.compile(
    rb"\(*c_*(builtin|os|posix|nt|sys|subprocess|runpy|shutil|socket|importlib|pty|commands|"
    rb"operator|functools|codecs|copy_?reg|torch|numpy|joblib|sklearn|dill|cloudpickle)[\w.]*\n\w+\n"
)


def is_pickle(head: bytes) -> bool:
    """Whether these first bytes of a file are those of a pickle."""
    if _TEXTUAL.match(head):
        return True
    if len(head) < 2 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        return False
    position = 2
    for _ in range(MAX_OPCODES):
        if position >= len(head):
            return True
        opcode = head[position]
        if opcode in _TELLING:
            return True
        after = _after(head, position + 1, _ARGUMENTS.get(opcode))
        if after is None:
            return False
        position = after
    return True


def _after(head: bytes, position: int, argument: int | None) -> int | None:
    """Where the next opcode begins; None where there is no such opcode."""
    if argument is None or argument >= 0:
        return None if argument is None else position + argument
    if argument in (_LINE, _TWO_LINES):
        for _ in range(-argument):
            position = head.find(b"\n", position) + 1 or len(head)
        return position
    width = -argument - 10
    return position + width + int.from_bytes(head[position : position + width], "little")


def holds_objects(head: bytes) -> bool:
    """Whether this is a NumPy file whose array is pickled."""
    if not head.startswith(b"\x93NUMPY"):
        return False
    header = head[8:].split(b"\n", 1)[0]
    return re.search(rb"['\"][|<>=]?O\d*['\"]|object", header) is not None
