"""Gates in words: "accuracy >= holder - 0.01"; makes no call."""

from __future__ import annotations

import re

from gristmill.registry.v1 import alias_pb2

from gristmill_client.errors import InvalidRequest

_HOLDER = "that of the present version"
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_GATE = re.compile(
    r"\s*(?P<metric>.+?)\s*(?P<sign>>=|<=)\s*"
    rf"(?:(?P<holder>holder|{_HOLDER})\s*(?P<plus>[+-]\s*{_NUMBER})?|(?P<value>[+-]?{_NUMBER}))\s*"
)
_COMPARISONS = {
    ">=": alias_pb2.COMPARISON_AT_LEAST,
    "<=": alias_pb2.COMPARISON_AT_MOST,
}


def gate_of(text: str) -> alias_pb2.Gate:
    """The gate that a text says; `holder` is the same metric of the version pointed to now."""
    found = _GATE.fullmatch(text)
    if found is None:
        raise InvalidRequest(
            f"{text!r} is no gate: write METRIC>=NUMBER, METRIC<=NUMBER, METRIC>=holder-NUMBER"
        )
    gate = alias_pb2.Gate(metric=found["metric"], comparison=_COMPARISONS[found["sign"]])
    if found["holder"]:
        gate.holder_plus = float((found["plus"] or "0").replace(" ", ""))
    else:
        gate.value = float(found["value"])
    return gate


def gate_text(gate: alias_pb2.Gate) -> str:
    """What `gate_of` understands, in words for people."""
    sign = ">=" if gate.comparison == alias_pb2.COMPARISON_AT_LEAST else "<="
    if gate.WhichOneof("limit") == "holder_plus":
        return f"{gate.metric} {sign} {_HOLDER} {gate.holder_plus:+g}"
    return f"{gate.metric} {sign} {gate.value:g}"
