"""Log lines: one JSON object each, control characters escaped, never a token."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

SECRET = ("authorization", "token", "password", "secret")


def _redact(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key in event:
        if any(word in key.lower() for word in SECRET):
            event[key] = "[redacted]"
    return event


def _escape(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """For a terminal: what a caller sent must not move its cursor."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode("ascii")
    return event


def configure(service: str, level: str, style: Literal["json", "text"]) -> None:
    """Send all logging of this process, the libraries' own too, to standard error."""
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    # json.dumps writes ASCII only, so newlines, escapes and bidi marks cannot leave their string.
    final: list[structlog.types.Processor] = (
        [structlog.processors.JSONRenderer()]
        if style == "json"
        else [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A library that logs each request would double our own line.
    for noisy in ("uvicorn.access", "httpx", "hpack"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(service=service)


def get_logger() -> Any:
    """The logger of the process."""
    return structlog.get_logger()
