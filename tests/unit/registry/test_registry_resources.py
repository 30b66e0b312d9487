"""Names, digests, etags and gates: what the registry's nouns allow."""

import hashlib
from datetime import UTC, datetime
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.resources import (
    AliasRecord,
    ArtifactRecord,
    GateRecord,
    ModelRecord,
    VersionRecord,
    alias_key,
    check_etag,
    check_gates,
    content_digest,
    kind_of,
    model_id,
    version_key,
)
from services.runtime.errors import Conflict, FailedPrecondition, InvalidRequest, NotFound

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ID = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
NUMBER = st.integers(1, 2**32 - 1)
Comparison = Literal["at_least", "at_most"]
BAD_IDS = (
    "",
    ".",
    "..",
    "-a",
    "_a",
    "a/b",
    "../a",
    "a\0",
    "a\n",
    "\na",
    "a b",
    "a%2fb",
    "a\\b",
    "é",
    "٣",
    "a" * 129,
)


def version(number: int = 1, **metrics: float) -> VersionRecord:
    """A version with metrics."""
    return VersionRecord(model="m", version=number, artifacts=(), metrics=metrics, create_time=NOW)


def gate(
    comparison: Comparison, value: float | None = None, holder_plus: float | None = None
) -> GateRecord:
    """A gate on accuracy."""
    return GateRecord(
        metric="accuracy", comparison=comparison, value=value, holder_plus=holder_plus
    )


@given(ID, ID, NUMBER)
def test_a_name_gives_back_the_ids_it_was_made_of(model: str, alias: str, number: int) -> None:
    record = VersionRecord(model=model, version=number, artifacts=(), create_time=NOW)
    held = AliasRecord(model=model, alias=alias, version=number, update_time=NOW)
    one = ModelRecord(id=model, task="generation", create_time=NOW, update_time=NOW)

    assert model_id(one.name) == model
    assert version_key(record.name) == (model, number)
    assert alias_key(held.name) == (model, alias)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_outside_the_pattern_is_refused_everywhere(bad: str) -> None:
    for parse, name in (
        (model_id, f"models/{bad}"),
        (version_key, f"models/{bad}/versions/1"),
        (alias_key, f"models/{bad}/aliases/live"),
        (alias_key, f"models/m/aliases/{bad}"),
    ):
        with pytest.raises(InvalidRequest):
            parse(name)  # type: ignore[operator]  # one of three functions of a string


@pytest.mark.parametrize(
    "name",
    [
        "models/m",
        "models/m/versions/",
        "models/m/versions/0",
        "models/m/versions/01",
        "models/m/versions/-1",
        "models/m/versions/1.0",
        "models/m/versions/1\n",
        "models/m/versions/١",
        "models/m/versions/99999999999",
        "models/m/versions/1/artifacts/a",
        "/models/m/versions/1",
        "m/versions/1",
    ],
)
def test_a_version_name_has_one_form(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"models/\{model\}/versions/\{version\}"):
        version_key(name)


@given(st.text())
def test_no_text_makes_a_parser_fail_otherwise(text: str) -> None:
    for parse in (model_id, version_key, alias_key):
        for name in (text, f"models/{text}", f"models/{text}/versions/{text}"):
            try:
                parse(name)  # type: ignore[operator]  # one of three functions of a string
            except InvalidRequest as error:
                assert error.violations


def test_the_digest_of_a_version_is_its_content_whatever_the_order() -> None:
    a = ArtifactRecord(path="a", size_bytes=1, sha256="a" * 64)
    b = ArtifactRecord(path="b", size_bytes=2, sha256="b" * 64)
    lines = f"{'a' * 64}  a\n{'b' * 64}  b\n".encode()
    one = version().model_copy(update={"artifacts": (a, b)})
    two = version().model_copy(update={"artifacts": (b, a)})

    assert one.digest == two.digest == hashlib.sha256(lines).hexdigest()
    swapped = content_digest([("a", "b" * 64), ("b", "a" * 64)])
    assert swapped != one.digest


def test_an_artifact_is_found_by_its_whole_path_only() -> None:
    a = ArtifactRecord(path="sub/a.onnx", size_bytes=1, sha256="a" * 64)
    record = version().model_copy(update={"artifacts": (a,)})

    assert record.artifact("sub/a.onnx") is a
    for path in ("a.onnx", "sub", "sub/a.onnx/", "./sub/a.onnx", "SUB/a.onnx", ""):
        with pytest.raises(NotFound) as caught:
            record.artifact(path)
        assert caught.value.reason_given == "ARTIFACT_NOT_FOUND"
        assert caught.value.resource == ("artifact", f"models/m/versions/1/{path}")


def test_an_etag_is_compared_only_where_one_is_given() -> None:
    check_etag("", "now")
    check_etag("now", "now")
    with pytest.raises(Conflict) as caught:
        check_etag("before", "now")
    assert caught.value.reason_given == "ETAG_MISMATCH"
    with pytest.raises(Conflict):
        check_etag("before", "")  # what it was read from is not there any more


@pytest.mark.parametrize(
    ("comparison", "limit", "holds"),
    [
        ("at_least", 0.9, True),
        ("at_least", 0.91, False),
        ("at_most", 0.9, True),
        ("at_most", 0.89, False),
        ("at_least", float("nan"), False),
        ("at_most", float("nan"), False),
        ("at_most", float("inf"), True),
    ],
)
def test_a_gate_with_a_number(comparison: Comparison, limit: float, holds: bool) -> None:
    one = gate(comparison, limit)
    if holds:
        check_gates([one], version(accuracy=0.9), None)
        return
    with pytest.raises(FailedPrecondition) as caught:
        check_gates([one], version(accuracy=0.9), version(9, accuracy=0.1))
    assert caught.value.reason_given == "GATE_UNMET"
    (violation,) = caught.value.violations
    assert violation.field == "accuracy"
    assert violation.description.startswith("0.9 is not ")


@pytest.mark.parametrize("figure", [float("nan"), None])
def test_a_candidate_without_a_figure_passes_no_gate(figure: float | None) -> None:
    candidate = version() if figure is None else version(accuracy=figure)
    for one in (gate("at_least", -1e9), gate("at_most", 1e9)):
        with pytest.raises(FailedPrecondition):
            check_gates([one], candidate, None)


@pytest.mark.parametrize(
    ("holder", "plus", "holds"),
    [(0.8, 0.1, True), (0.8, 0.2, False), (0.95, -0.1, True), (None, 5.0, True)],
)
def test_a_gate_against_the_present_holder(holder: float | None, plus: float, holds: bool) -> None:
    present = None if holder is None else version(1, accuracy=holder)
    one = gate("at_least", holder_plus=plus)
    if holds:
        check_gates([one], version(2, accuracy=0.9000001), present)
        return
    with pytest.raises(FailedPrecondition, match="0.9 is not >= 1"):
        check_gates([one], version(2, accuracy=0.9), present)


def test_a_holder_without_the_metric_lets_nothing_pass() -> None:
    with pytest.raises(FailedPrecondition, match="version 1, the present holder, has no such"):
        check_gates([gate("at_least", holder_plus=0.0)], version(2, accuracy=1.0), version(1))


def test_every_unmet_gate_is_named() -> None:
    gates = [
        GateRecord(metric="accuracy", comparison="at_least", value=0.95),
        GateRecord(metric="p95_ms", comparison="at_most", value=20),
        GateRecord(metric="f1", comparison="at_least", value=0.5),
    ]
    with pytest.raises(FailedPrecondition) as caught:
        check_gates(gates, version(accuracy=0.9, p95_ms=31.5, f1=0.6), None)
    assert [v.field for v in caught.value.violations] == ["accuracy", "p95_ms"]
    assert "31.5 is not <= 20" in str(caught.value)


FIGURE = st.floats(allow_nan=True, allow_infinity=True)


@given(FIGURE, FIGURE)
def test_any_figure_that_is_taken_can_be_read_again(metric: float, limit: float) -> None:
    """A figure that cannot be read back would take every listing and every watch with it."""
    record = version(1, accuracy=metric)
    held = AliasRecord(
        model="m", alias="live", version=1, gates=(gate("at_least", limit),), update_time=NOW
    )

    read = VersionRecord.model_validate_json(record.model_dump_json())
    assert repr(read.metrics) == repr({"accuracy": metric})
    again = AliasRecord.model_validate_json(held.model_dump_json())
    assert repr(again.gates) == repr(held.gates)
    assert (kind_of(read), kind_of(again)) == ("version", "alias")
