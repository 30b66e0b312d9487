"""Tokens to text as they come: no character split, no stop string leaked. Pure."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import regex

Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class Detokenizer:
    """Text of a growing list of tokens, in pieces that join to the whole.

    Decodes a window that begins a little before what is new, since tokenizers join and strip at
    the edges of what they decode. An emoji that more may be joined to is held back until it is
    known whether more comes.
    """

    decode: Decode
    ids: list[int] = field(default_factory=list)
    _start: int = 0
    _read: int = 0
    _held: str = ""

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        self.ids += ids
        before = self.decode(self.ids[self._start : self._read])
        after = self.decode(self.ids[self._start :])
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._start, self._read = self._read, len(self.ids)
        text = self._held + after[len(before) :]
        end = _settled(text)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """What is left when no more tokens come, however incomplete."""
        before = self.decode(self.ids[self._start : self._read])
        after = self.decode(self.ids[self._start :])
        self._start = self._read = len(self.ids)
        held, self._held = self._held, ""
        return held + after[len(before) :]


class PieceReader:
    """The same for a vocabulary whose tokens are bytes, one after the other."""

    __slots__ = ("_decoder", "_held", "_pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._held = ""

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while a character is incomplete."""
        pieces = self._pieces
        text = self._held + self._decoder.decode(b"".join([pieces[one] for one in ids]))
        end = _settled(text)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """What is left when no more tokens come, however incomplete."""
        held, self._held = self._held, ""
        return held + self._decoder.decode(b"", final=True)


def joined(pieces: Sequence[bytes], ids: Sequence[int]) -> str:
    """The whole text of tokens that are bytes, without what is no character."""
    return b"".join([pieces[one] for one in ids]).decode(errors="ignore")


_CLUSTERS = regex.compile(r"\X")
_PICTURE = regex.compile(r"[\p{Extended_Pictographic}\p{Regional_Indicator}]")
_MOST_HELD = 64
"""Characters: no emoji is longer."""
_FIRST_THAT_JOINS = "\u200d"


def _settled(text: str) -> int:
    """How much of a text is sure to stay as it is: all but an emoji at its end."""
    if not text or text[-1] < _FIRST_THAT_JOINS:
        return len(text)
    tail = text[-_MOST_HELD:]
    last = _CLUSTERS.findall(tail)[-1]
    if len(last) == _MOST_HELD or not _PICTURE.search(last):
        return len(text)
    return len(text) - len(last)


@dataclass(slots=True)
class StopFilter:
    """Holds text back while it may be the beginning of a stop string."""

    stops: tuple[str, ...]
    matched: str = ""
    _held: str = ""

    def push(self, text: str) -> str:
        """The text that is certainly part of the output; nothing after a match."""
        if self.matched or not self.stops:
            return "" if self.matched else text
        joined = self._held + text
        found = [(joined.find(stop), stop) for stop in self.stops if stop in joined]
        if found:
            # The first to be complete, then the longest: the same however the text comes in pieces.
            position, self.matched = min(found, key=lambda at: (at[0] + len(at[1]), at[0]))
            self._held = ""
            return joined[:position]
        keep = max((overlap(joined, stop) for stop in self.stops), default=0)
        self._held = joined[len(joined) - keep :] if keep else ""
        return joined[: len(joined) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
