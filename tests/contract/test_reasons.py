"""The reasons in the code are those of the contract, word for word, and each one is given."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from gristmill.errors.v1 import error_reason_pb2

from services.runtime import errors

ROOT = Path(__file__).parents[2]
PREFIX = "ERROR_REASON_"
ENUM = error_reason_pb2.ErrorReason.DESCRIPTOR
CONSTANTS = {
    name: value for name, value in vars(errors).items() if name.isupper() and type(value) is str
}


def test_each_constant_is_a_reason_of_the_contract_and_the_other_way_round() -> None:
    contract = {value.name.removeprefix(PREFIX) for value in ENUM.values if value.number}
    assert set(CONSTANTS.values()) == contract


def test_a_constant_is_called_what_it_says() -> None:
    assert {name: name for name in CONSTANTS} == CONSTANTS


def test_every_value_of_the_enum_has_its_prefix() -> None:
    assert all(value.name.startswith(PREFIX) for value in ENUM.values)
    assert ENUM.values_by_number[0].name == f"{PREFIX}UNSPECIFIED"


BY_CLASS = {
    name: kind.reason
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.GristmillError)
}


def own_name(node: ast.AST, imported: set[str]) -> str:
    """The name in services.runtime.errors that an expression means, else nothing."""
    if isinstance(node, ast.Name) and node.id in imported:
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "errors" else ""
    return ""


def given_in(path: Path) -> Counter[str]:
    """The reasons that a module gives: those it names, and those of the errors it makes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    imported = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "services.runtime.errors"
        for alias in node.names
    }
    found = Counter(name for node in nodes if (name := own_name(node, imported)) in CONSTANTS)
    for node in nodes:
        if isinstance(node, ast.Call):
            made = node.func
            if isinstance(made, ast.Attribute) and made.attr == "field":
                made = made.value
            if (name := own_name(made, imported)) in BY_CLASS:
                found[BY_CLASS[name]] += 1
    return found


@pytest.fixture(scope="module")
def given() -> Counter[str]:
    """Every reason that a service or the gateway gives."""
    found = Counter[str]()
    for folder in ("services", "gateway"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != ROOT / "services/runtime/errors.py":
                found += given_in(path)
    return found


@pytest.mark.parametrize("reason", sorted(CONSTANTS))
def test_every_reason_is_given_somewhere(given: Counter[str], reason: str) -> None:
    """A reason that nothing gives is a promise to callers that nobody keeps."""
    assert given[reason]
