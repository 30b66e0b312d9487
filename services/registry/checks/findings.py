"""The one way to say that a file is refused, in words for whoever sent it. Knows no format."""

from services.registry.resources import RejectionRecord
from services.runtime.errors import MAX_MESSAGE_BYTES, shortened

MAX_PATH_BYTES = 300


class RefusedError(Exception):
    """A file breaks a rule."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message

    def record(self, path: str) -> RejectionRecord:
        """The reason as it is kept with the version."""
        return rejection(path, self.rule, self.message)


def rejection(path: str, rule: str, message: str) -> RejectionRecord:
    """A reason that is safe to print: short, and without control characters."""
    return RejectionRecord(
        path=_printable(path, MAX_PATH_BYTES),
        rule=rule,
        message=_printable(_one_line(message), MAX_MESSAGE_BYTES),
    )


def quoted(text: str, most: int = 80) -> str:
    """What a file says, shortened, as it may stand in a message."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def _one_line(text: str) -> str:
    """What libraries say over several lines; the rest would be cut off in any case."""
    return " ".join(text[: 4 * MAX_MESSAGE_BYTES].split())


def _printable(text: str, most_bytes: int) -> str:
    kept = text[: most_bytes + 1]
    return shortened("".join(c if c.isprintable() else "\ufffd" for c in kept), most_bytes)
