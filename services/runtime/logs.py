"""Log lines: one JSON object each, control characters escaped, never a token."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

SECRET = ("authorization", "token", "password", "secret")
# What grpc.aio logs as errors, with traces, though it is the caller's doing: the first repeats
# header values that are not UTF-8, a token among them; the second is a caller gone mid-stream.
CALLERS_DOING = ("Invalid encoding on", "ExecuteBatchError raised in core")


def _redact(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key in event:
        counted = isinstance(event[key], int | float)
        if not counted and any(word in key.lower() for word in SECRET):
            event[key] = "[redacted]"
    return event


def _escape(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """For a terminal: what a caller sent must not move its cursor."""
    for key, value in event.items():
        if isinstance(value, str) and key == "exception":
            event[key] = "\n".join(f"    {_printable(line)}" for line in value.split("\n"))
        elif isinstance(value, str):
            event[key] = _printable(value)
    return event


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _is_ours(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(CALLERS_DOING)


def configure(service: str, level: str, style: Literal["json", "text"]) -> None:
    """Send all logging of this process, the libraries' own too, to standard error."""

    def name(
        logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    shared: list[structlog.types.Processor] = [
        name,
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
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_ours)


def get_logger() -> Any:
    """The logger of the process."""
    return structlog.get_logger()
