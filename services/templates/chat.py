"""A model's own chat template: messages in, the prompt as text out. Knows no model and no wire."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from services.runtime.errors import FailedPrecondition, InvalidRequest
from services.templates.budget import Budget, OverBudgetError
from services.templates.sandbox import Sandbox

Message = Mapping[str, Any]
"""`role` and `content`, and as the role needs: `name`, `tool_calls`, `tool_call_id`."""
MAX_BYTES = 64 * 1024


class ChatTemplate:
    """Compiled once; each rendering has a budget of its own.

    `tokens` are the special tokens that templates name: `bos_token`, `eos_token` and the like.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        if len(source.encode("utf-8", "replace")) > MAX_BYTES:
            raise FailedPrecondition(f"the chat template is larger than {MAX_BYTES >> 10} KiB")
        self.source = source
        self._tokens = dict(tokens)
        self._sandbox = Sandbox(Budget.for_serving())
        self._lock = threading.Lock()
        try:
            self._template = self._sandbox.compiled(source)
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            raise FailedPrecondition(f"the chat template cannot be compiled: {error}") from error
        self.knows_tools = "tools" in source

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The conversation, ready for the answer; InvalidRequest where the template refuses it."""
        variables = {
            **self._tokens,
            "messages": [dict(message) for message in messages],
            "tools": [dict(tool) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": True,
        }
        with self._lock:  # the environment has one budget at a time
            self._sandbox.budget = Budget.for_serving()
            try:
                return "".join(self._template.generate(variables))
            except (SecurityError, OverBudgetError) as error:
                raise InvalidRequest(f"the model's chat template {error}") from error
            except jinja2.TemplateError as error:
                raise InvalidRequest(f"the model's chat template refuses it: {error}") from error
            except (TypeError, ValueError, KeyError, RecursionError) as error:
                said = f"the model's chat template cannot write it: {type(error).__name__}"
                raise InvalidRequest(said) from error
