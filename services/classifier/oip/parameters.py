"""What the parameters of a request ask for; knows no model.

Names that Triton reserves are obeyed or refused. Any other is the caller's own, for a model that
reads it: it is taken, and no model here reads any.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from services.oip.contract import pb
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidRequest, UnsupportedField

LEAST_URGENT = 9
EMPTY_FINAL = "triton_enable_empty_final_response"
FINAL = "triton_final_response"
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
Given = Mapping[str, pb.InferParameter]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for beside its tensors; 0 is the default."""

    priority: int = 0
    timeout_us: int = 0
    no_cache: bool = False

    def until(self, deadline: Deadline) -> Deadline:
        """The deadline, or an earlier one where the request gives it."""
        if not self.timeout_us:
            return deadline
        return min(deadline, Deadline.after(self.timeout_us / 1e6))


NOTHING = Asked()


def read(given: Given) -> Asked:
    """What is asked for; InvalidRequest where a reserved name has a value that it cannot have."""
    if not given:
        return NOTHING
    for name in given:
        if name in SEQUENCE:
            _refuse_sequence(name, given[name])
        elif name == EMPTY_FINAL:
            # The answer is the final response itself: there is no empty one to follow it.
            _flag(name, given[name])
        elif name.startswith("triton_"):
            raise InvalidRequest.field(_field(name), "is reserved, and not known")
    priority = number("priority", given["priority"]) if "priority" in given else 0
    if priority > LEAST_URGENT:
        said = f"is {priority}; it must be 0 (the default) to {LEAST_URGENT}, 1 most urgent"
        raise InvalidRequest.field(_field("priority"), said)
    timeout_us = number("timeout", given["timeout"]) if "timeout" in given else 0
    no_cache = _flag("no_cache", given["no_cache"]) if "no_cache" in given else False
    return Asked(priority, timeout_us, no_cache)


def number(name: str, value: pb.InferParameter) -> int:
    """A whole number of 0 or more."""
    choice = value.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param"):
        raise InvalidRequest.field(_field(name), "must be an int64_param or a uint64_param")
    found: int = getattr(value, choice)
    if found < 0:
        raise InvalidRequest.field(_field(name), f"is {found}; it must be at least 0")
    return found


def _flag(name: str, value: pb.InferParameter) -> bool:
    if value.WhichOneof("parameter_choice") != "bool_param":
        raise InvalidRequest.field(_field(name), "must be a bool_param")
    return value.bool_param


def _refuse_sequence(name: str, value: pb.InferParameter) -> None:
    choice = value.WhichOneof("parameter_choice")
    if choice and getattr(value, choice):
        raise UnsupportedField.field(_field(name), "no model here keeps a state between requests")


def _field(name: str) -> str:
    return f"parameters[{name}]"
