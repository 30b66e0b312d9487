"""What the messages to all three services share; makes no call."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.descriptor import EnumDescriptor
from gristmill.registry.v1 import model_pb2

MODELS = "models/"


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


def reject_unknown(options: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Options travel as a dictionary: what a signature would refuse is refused here."""
    unknown = ", ".join(sorted(options.keys() - known.keys()))
    if unknown:
        raise TypeError(f"no such option: {unknown}; there are {', '.join(sorted(known))}")


def enum_name(kind: EnumDescriptor, value: int, prefix: str) -> str:
    """The name without its prefix; the number for one that only a newer contract has."""
    known = kind.values_by_number.get(value)
    return known.name.removeprefix(prefix) if known else str(value)
