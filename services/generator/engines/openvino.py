"""OpenVINO GenAI: a pipeline in a process of its own, with the tokenizer inside its GGUF file."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from services.generator.engine import Capabilities, EngineSettings
from services.generator.engines.process import EngineProcess
from services.inference.templates.chat import ChatTemplate

WORKER = "services.generator.engines.openvino_worker"
NAME = "openvino-genai"
CAPABILITIES = Capabilities(
    constraints=frozenset({"json_schema", "regex", "choices", "json_object"})
)


class OpenVinoTokenizer:
    """The tokenizer and chat template inside a GGUF file."""

    def __init__(self, model: Path) -> None:
        import openvino_genai as genai

        self._tokenizer = genai.Tokenizer(str(model))
        self.eos_ids = frozenset({int(self._tokenizer.get_eos_token_id())})
        self.vocabulary = max(self._tokenizer.get_vocab().values()) + 1
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
        """Text of token ids; bytes of a character that is not complete yet are left out."""
        return str(self._tokenizer.decode(list(ids)))

    def piece(self, token: int) -> bytes:
        """What one token stands for."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()


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
