"""OpenVINO GenAI: a pipeline in a process of its own, with the tokenizer inside its GGUF file."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from services.generator.engine import Capabilities, EngineSettings
from services.generator.engines.process import EngineProcess
from services.generator.text import joined
from services.templates.chat import ChatTemplate

WORKER = "services.generator.engines.openvino_worker"
NAME = "openvino-genai"
CAPABILITIES = Capabilities(
    constraints=frozenset({"json_schema", "regex", "choices", "json_object"})
)


SAMPLE = " Two words,  é 中文 😀\n\tand so on. don't"
"""Spaces at the edges and characters of several tokens."""


class OpenVinoTokenizer:
    """The tokenizer and chat template inside a GGUF file."""

    def __init__(self, model: Path) -> None:
        import openvino_genai as genai

        self._tokenizer = genai.Tokenizer(str(model))
        self.eos_ids = frozenset({int(self._tokenizer.get_eos_token_id())})
        vocabulary = self._tokenizer.get_vocab()
        self.vocabulary = max(vocabulary.values()) + 1
        self.pieces: Sequence[bytes] | None = self._pieces(vocabulary)
        source = self._tokenizer.get_original_chat_template()
        tokens = {
            "bos_token": self._tokenizer.get_bos_token(),
            "eos_token": self._tokenizer.get_eos_token(),
        }
        self.template = ChatTemplate(source, tokens) if source else None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoded.input_ids.data[0].tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without what is no character."""
        if self.pieces is not None:
            return joined(self.pieces, ids)
        return str(self._tokenizer.decode(list(ids)))

    def piece(self, token: int) -> bytes:
        """What one token stands for."""
        if self.pieces is not None and self.pieces[token]:
            return self.pieces[token]
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()

    def _pieces(self, vocabulary: Mapping[bytes, int]) -> Sequence[bytes] | None:
        """The bytes of each token, where it shows that texts are no more than these."""
        pieces = [b""] * self.vocabulary
        for piece, token in vocabulary.items():
            special = piece.startswith(b"<") and not self._tokenizer.decode([token])
            pieces[token] = b"" if special else piece
        ids = self.encode(SAMPLE)
        return pieces if joined(pieces, ids) == SAMPLE == self._tokenizer.decode(ids) else None


class OpenVinoEngine(EngineProcess):
    """A pipeline in a process of its own."""

    def __init__(
        self,
        model: Path,
        settings: EngineSettings,
        on_health: Callable[[bool], None] = lambda serving: None,
    ) -> None:
        def command(fd: int) -> list[str]:
            return [
                *(sys.executable, "-m", WORKER, str(fd)),
                *(str(model), json.dumps(asdict(settings))),
            ]

        super().__init__(NAME, CAPABILITIES, command, lambda: OpenVinoTokenizer(model), on_health)
