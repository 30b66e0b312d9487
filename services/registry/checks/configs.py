"""The JSON files beside a model: that they can be read, and name no code to run."""

from typing import Any

from services.registry.checks import templates
from services.registry.checks.contents import CODE_RULE
from services.registry.checks.files import Files
from services.registry.checks.findings import RefusedError, quoted
from services.registry.checks.json_text import MAX_BYTES, outline, parse, parse_object

RULE = "json"
# Vocabularies of a million entries: held against the bounds, and left to the tokenizer to parse.
UNPARSED = ("tokenizer.json",)
TOKENIZER_CONFIG = "tokenizer_config.json"
CODE_KEYS = {
    *("auto_map", "automap", "trust_remote_code", "custom_code", "remote_code", "code_revision"),
    *("custom_pipeline", "custom_pipelines", "custom_generate"),
}


def check(files: Files, path: str) -> None:
    """Refuse a JSON file that is out of bounds, names code, or has a bad chat template."""
    data = files.read(path, MAX_BYTES, RULE)
    name = path.rpartition("/")[2]
    if name in UNPARSED:
        outline(data, RULE)
        if not data.lstrip().startswith(b"{"):
            raise RefusedError(RULE, "must be a JSON object")
        return
    value = parse(data, RULE)
    _check_code(value)
    if isinstance(value, dict) and "chat_template" in value:
        for called, source in templates.named(value):
            templates.check(source, called)


def read(files: Files, path: str) -> dict[str, Any]:
    """A config that is in order; empty where there is none."""
    if path not in files.paths:
        return {}
    return parse_object(files.read(path, MAX_BYTES, RULE), RULE)


def _check_code(value: Any) -> None:
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            for key, under in part.items():
                # A vocabulary may have any text as a key, with a number under it.
                if key.lower().replace("-", "_") in CODE_KEYS and type(under) is not int:
                    said = f"{quoted(key)} asks to run code; remove it, and any code with it"
                    raise RefusedError(CODE_RULE, said)
            pending += part.values()
        elif isinstance(part, list):
            pending += part
