"""The text side of a Hugging Face folder: tokenizer.json, its special tokens, its template."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.generator.text import joined
from services.runtime.errors import FailedPrecondition
from services.templates.chat import ChatTemplate

SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class FolderTokenizer:
    """The tokenizer of a model folder, as `transformers` would read it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = _read(folder / "tokenizer_config.json")
        tokens = {name: text for name in SPECIAL if (text := _text(config.get(name)))}
        self.vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.eos_ids = frozenset(self._eos(folder, tokens.get("eos_token")))
        source = _template(folder, config)
        self.template = ChatTemplate(source, tokens) if source else None
        self.pieces: Sequence[bytes] | None = self._pieces()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special ones left out."""
        if self.pieces is not None:
            return joined(self.pieces, ids)
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def piece(self, token: int) -> bytes:
        """What one token stands for; may be a part of a character."""
        if self.pieces is not None and self.pieces[token]:
            return self.pieces[token]
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()

    def _pieces(self) -> Sequence[bytes] | None:
        """The bytes of each token of a byte-level vocabulary."""
        made: dict[str, Any] = json.loads(self._tokenizer.to_str())
        if (made.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        special = {one["id"] for one in made["added_tokens"] if one["special"]}
        plain = {one["id"] for one in made["added_tokens"]} - special
        table = _bytes_of_characters()
        pieces = [b""] * self.vocabulary
        for text, token in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token in plain:
                pieces[token] = text.encode()
            elif token not in special:
                pieces[token] = bytes(table[character] for character in text)
        return pieces

    def _eos(self, folder: Path, token: str | None) -> set[int]:
        found: list[Any] = [self._tokenizer.token_to_id(token)] if token else []
        for name in ("generation_config.json", "config.json"):
            given = _read(folder / name).get("eos_token_id")
            found += given if isinstance(given, list) else [given]
        return {one for one in found if isinstance(one, int)}


def _template(folder: Path, config: dict[str, Any]) -> str:
    """The default chat template: a file of its own, else in the configuration."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    given = config.get("chat_template") or ""
    if isinstance(given, list):
        named = {one["name"]: one["template"] for one in given}
        given = named.get("default", "")
    return str(given)


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPrecondition(f"{file.name} is no JSON: {error}") from error
    return found


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """How byte-level vocabularies write bytes: the printable as they are, others from U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    written = {chr(byte): byte for byte in plain}
    return written | {chr(256 + place): byte for place, byte in enumerate(others)}
