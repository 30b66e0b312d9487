"""The check of a data set: labelled examples, one JSON object a line. Knows no model."""

import json
from pathlib import Path
from typing import Any

from services.registry.resources import RejectionRecord, SignatureRecord
from services.registry.worker.folders import DATA_FILE, Progress

MOST_LABELS = 4096
"""More are not listed in the signature."""
MOST_LINE, MOST_LINES = 2**20, 10_000_000
Checked = tuple[tuple[RejectionRecord, ...], SignatureRecord | None]


def check(folder: Path, progress: Progress) -> Checked:
    """What is wrong with the examples; else which labels they have."""
    path = folder / DATA_FILE
    if not path.is_file():
        said = f'a data set needs the artifact {DATA_FILE}: a JSON object with "text" or '
        return _refused("file-missing", said + '"features", and "label", in each line')
    progress(0.0, "reading examples")
    labels: set[str] = set()
    count = 0
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE + 1):
            count += 1
            if wrong := _wrong(line, labels):
                return _refused("data", f"line {count} {wrong}")
            if count > MOST_LINES:
                return _refused("data", f"has more than {MOST_LINES} lines")
    if not labels:
        return _refused("data", "holds no example")
    return (), SignatureRecord(labels=tuple(sorted(labels)[:MOST_LABELS]))


def _wrong(line: bytes, labels: set[str]) -> str:
    """What is wrong with a line, or nothing; its labels are added to `labels`."""
    if len(line) > MOST_LINE:
        return f"is longer than {MOST_LINE} bytes"
    if not line.strip():
        return ""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return "is no JSON"
    if not isinstance(value, dict) or not {"text", "features"} & value.keys():
        return 'needs an object with "text" or "features"'
    given = value.get("label")
    for label in given if isinstance(given, list) else [given]:
        if type(label) not in (str, int):
            return 'needs a "label": a name, an index, or a list of those'
        if len(labels) <= MOST_LABELS:
            labels.add(str(label))
    return ""


def _refused(rule: str, message: str) -> Checked:
    return (RejectionRecord(path=DATA_FILE, rule=rule, message=message),), None
