"""Chat templates: rendered once within bounds, refused where they misbehave. Serves none."""

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from services.registry.checks.findings import RefusedError
from services.templates.budget import Budget, OverBudgetError
from services.templates.sandbox import Sandbox

RULE = "chat-template"
MAX_BYTES, MAX_TEMPLATES = 64 * 1024, 16
DEFAULT = "default"
_TEXTS = ("Hello", "How can I help?")
_TOKENS = {name: f"<{name}>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}


def named(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and source of each template in a tokenizer_config.json."""
    given = config.get("chat_template")
    if given is None:
        return
    if isinstance(given, str):
        yield DEFAULT, given
        return
    if isinstance(given, dict):
        given = [{"name": name, "template": source} for name, source in given.items()]
    if not isinstance(given, list) or len(given) > MAX_TEMPLATES:
        raise RefusedError(
            RULE, f"chat_template must be a text or up to {MAX_TEMPLATES} named ones"
        )
    for entry in given:
        source = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(source, str) or not isinstance(entry.get("name"), str):
            raise RefusedError(RULE, "each chat template needs a name and a template, both texts")
        yield entry["name"], source


def check(source: str, name: str = DEFAULT) -> None:
    """Refuse a template that is too long, reaches for what it may not, or does not end.

    The default one must also render a conversation; others may need tools or documents.
    """
    if len(source.encode("utf-8", "replace")) > MAX_BYTES:
        raise RefusedError(RULE, f"the chat template is larger than {MAX_BYTES >> 10} KiB")
    fault = _fault(source, _conversation(parts=False))
    if fault and name == DEFAULT:
        fault = _fault(source, _conversation(parts=True))
        if fault:
            raise RefusedError(RULE, f"the chat template cannot write a conversation: {fault}")


def _fault(source: str, variables: Mapping[str, Any]) -> str | None:
    """Why it does not render; refused at once for what no conversation makes right."""
    try:
        Sandbox(Budget()).render_bounded(source, variables)
    except (SecurityError, OverBudgetError) as error:
        raise RefusedError(RULE, f"the chat template {error}") from error
    except (RecursionError, MemoryError) as error:
        said = "the chat template is nested too deeply, or calls itself without end"
        raise RefusedError(RULE, said) from error
    except (jinja2.TemplateSyntaxError, SyntaxError) as error:
        raise RefusedError(RULE, f"the chat template cannot be compiled: {error}") from error
    except jinja2.UndefinedError as error:
        return str(error)
    except jinja2.TemplateError:
        # The template's own refusal of this conversation, which is its right.
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _conversation(*, parts: bool) -> dict[str, Any]:
    """What a server renders: texts, or for models that see as well, lists of parts."""
    contents: list[Any] = list(_TEXTS)
    if parts:
        contents = [[{"type": "text", "text": text}] for text in _TEXTS]
    messages = [
        {"role": role, "content": content}
        for role, content in zip(("user", "assistant"), contents, strict=True)
    ]
    given = {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None}
    return {**given, **_TOKENS}
