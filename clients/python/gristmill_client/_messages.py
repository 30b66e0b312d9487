"""What the messages to all three services share; makes no call."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.descriptor import EnumDescriptor
from gristmill.registry.v1 import model_pb2

MODELS = "models/"
# The contract's bounds on what is sent on a stream, a breach of which would end it.
MAX_ID_CHARS = 128
MIN_TIMEOUT_S = 0.001
MAX_TIMEOUT_S = 3600.0


def model_ref(
    model: str | None, version: int | None = None, alias: str | None = None
) -> model_pb2.ModelRef | None:
    """The reference; None where nothing is named, which means the only model served."""
    if version is not None and alias is not None:
        raise ValueError("give a version or an alias, not both")
    if model is None and version is None and alias is None:
        return None
    ref = model_pb2.ModelRef(model=model_id(model or ""))
    if version is not None:
        ref.version = version
    if alias is not None:
        ref.alias = alias
    return ref


def model_id(name: str) -> str:
    """Takes "models/sentiment" for "sentiment"."""
    return name.removeprefix(MODELS)


def checked_id(id: str | None) -> str:  # noqa: A002  # the contract's name
    """The id of what is sent on a stream; "" where none is given. Raises ValueError."""
    if id is not None and not 1 <= len(id) <= MAX_ID_CHARS:
        raise ValueError(f"an id has 1 to {MAX_ID_CHARS} characters, not {len(id)}")
    return id or ""


def checked_timeout(timeout: float | None, default_s: float, whose: str) -> float:
    """The seconds that what is sent on a stream has. Raises ValueError."""
    seconds = min(default_s, MAX_TIMEOUT_S) if timeout is None else timeout
    if not MIN_TIMEOUT_S <= seconds <= MAX_TIMEOUT_S:
        raise ValueError(f"{whose} 1 ms to 1 hour, not {seconds:g} s")
    return seconds


def reject_unknown(options: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Options travel as a dictionary: what a signature would refuse is refused here."""
    unknown = ", ".join(sorted(options.keys() - known.keys()))
    if unknown:
        raise TypeError(f"no such option: {unknown}; there are {', '.join(sorted(known))}")


def enum_name(kind: EnumDescriptor, value: int, prefix: str) -> str:
    """The name without its prefix; the number for one that only a newer contract has."""
    known = kind.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known else str(value)
