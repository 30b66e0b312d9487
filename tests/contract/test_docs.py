"""The documents say what the code says."""

import re
from pathlib import Path

from gristmill.errors.v1 import error_reason_pb2

from gateway.errors import HTTP, HTTP_BY_REASON, REFUSALS
from services.runtime.transports import CAPABILITIES

DOCS = Path(__file__).parents[2] / "docs"


def test_every_reason_is_explained() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    names = [name.removeprefix("ERROR_REASON_") for name, _ in error_reason_pb2.ErrorReason.items()]
    missing = [name for name in names if name != "UNSPECIFIED" and f"| `{name}` |" not in text]
    assert missing == []


def test_every_refusal_of_http_is_explained() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    for http, (status, reason, _) in REFUSALS.items():
        assert f"| `{reason}` | {status} | {http} |" in text


def test_every_reason_has_the_status_that_http_gives_it() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8").partition("http.gristmill")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\d+) \|", text, re.MULTILINE)
    assert rows
    for reason, status, http in rows:
        assert int(http) == HTTP_BY_REASON.get(reason, HTTP[status]), reason


def test_the_capability_table_is_the_code_s() -> None:
    rows = [
        line.strip("|").split("|")
        for line in (DOCS / "transports.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| capability")
    ]
    told = [
        (r[0].strip(), r[1].strip() == "yes", r[2].strip() == "yes", r[3].strip()) for r in rows
    ]
    assert told == [(c.name, c.grpcio, c.native, c.note) for c in CAPABILITIES]
