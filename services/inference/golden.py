"""Golden items: what a version must answer before it may serve. Knows no queue and no wire.

They are labelled examples in a file of the model folder. A version that answers one of them
otherwise is broken, whatever its files look like: it is not loaded, and the one before goes on.
"""

from pathlib import Path

import numpy as np

from services.inference.backend import Instance
from services.inference.examples import Example, Labels, read
from services.inference.items import Encoded, pad
from services.inference.manifest import Manifest
from services.inference.preprocessing import Preprocessor
from services.inference.scoring import Floats, probabilities
from services.runtime.errors import GristmillError, InvalidRequest

MOST = 256
"""They are run one by one each time the version is loaded."""
MULTI_LABEL_FROM = 0.5


def check(manifest: Manifest, folder: Path, preprocessor: Preprocessor, instance: Instance) -> int:
    """Run the golden items and return how many there are, 0 where the model has none.

    Raises InvalidRequest, naming file and line, for one that is answered otherwise.
    """
    name = manifest.files.get("golden")
    if name is None:
        return 0
    labels = Labels(manifest.output.labels, manifest.output.multi_label)
    count = 0
    try:
        for example in read(folder / name):
            count += 1
            if count > MOST:
                said = f"at most {MOST} golden items are run"
                raise InvalidRequest.field(f"line {example.line}", said)
            where = f"line {example.line}"
            row = _answer(example, where, manifest, preprocessor, instance)
            _hold_against(example, row, labels, where)
    except FileNotFoundError as error:
        raise InvalidRequest.field("model.yaml: files.golden", f"{name} is not there") from error
    except InvalidRequest as error:
        # Lines are named by whoever reads them, the file here.
        first = error.violations[0]
        raise InvalidRequest.field(f"{name}: {first.field}", first.description) from error
    return count


def _answer(
    example: Example, where: str, manifest: Manifest, preprocessor: Preprocessor, instance: Instance
) -> Floats:
    (encoded,) = preprocessor.encode([example.item])
    if not isinstance(encoded, Encoded):
        raise InvalidRequest.field(where, encoded.message)
    try:
        outputs = instance.run(pad([encoded], preprocessor.fill))
        row = {output: values[0] for output, values in outputs.items()}
        return probabilities(row, multi_label=manifest.output.multi_label)
    except Exception as error:
        # The words of a library are for the log: they may name what is no caller's business.
        said = error.message if isinstance(error, GristmillError) else type(error).__name__
        raise InvalidRequest.field(where, f"the model cannot answer it: {said}") from error


def _hold_against(example: Example, row: Floats, labels: Labels, where: str) -> None:
    if example.labels or example.listed:
        wanted = set(labels.indices(example, row.size))
        given = (
            set(np.flatnonzero(row >= MULTI_LABEL_FROM).tolist())
            if labels.multi_label
            else {int(row.argmax())}
        )
        if wanted != given:
            said = f"is {_names(wanted, labels)}, the model answers {_names(given, labels)}"
            raise InvalidRequest.field(where, said)
    if example.probabilities:
        if len(example.probabilities) != row.size:
            said = f"has {len(example.probabilities)} probabilities, the model gives {row.size}"
            raise InvalidRequest.field(where, said)
        off = float(np.abs(row - np.array(example.probabilities)).max())
        if off > example.tolerance:
            said = f"is missed by {off:.4f}, more than the tolerance {example.tolerance:g}"
            raise InvalidRequest.field(where, said)


def _names(indices: set[int], labels: Labels) -> str:
    known = labels.names
    names = [known[i] if i < len(known) else str(i) for i in sorted(indices)]
    return ", ".join(names) or "none"
