"""Answers as a response: outputs stacked, or their best classes as text. Knows no request."""

from collections.abc import Sequence

import numpy as np

from services.classifier.answers import Answer
from services.classifier.oip import tensors
from services.classifier.oip.signature import Output
from services.inference.items import Array
from services.inference.scoring import Outputs
from services.oip.contract import pb
from services.runtime.errors import BackendFailed, GristmillError

TRUNCATED = "truncated"


def write(
    response: pb.ModelInferResponse,
    answers: Sequence[Answer],
    wanted: Sequence[Output],
    labels: Sequence[str],
) -> None:
    """Add the outputs; raises the first item's error: here a request fails as a whole."""
    for index, answer in enumerate(answers):
        if answer.error is not None:
            raise of_item(answer.error, index, len(answers))
        if answer.truncated:
            response.parameters[TRUNCATED].bool_param = True
    runs = _runs(answers)
    for output in wanted:
        try:
            parts = [batch.arrays[output.name][rows] for batch, rows in runs]
        except KeyError as error:
            raise BackendFailed(f"the model gave no output {output.name}") from error
        array = stacked(parts)
        if output.classes:
            array = best(array, output.classes, labels)
        tensors.write(response, output.name, array, output.datatype)


def of_item(error: GristmillError, index: int, count: int) -> GristmillError:
    """The same error, saying which of several items it is of."""
    if count == 1:
        return error
    return type(error)(
        f"item {index}: {error.message}",
        reason=error.reason_given,
        metadata={**error.metadata, "item": str(index)},
        violations=error.violations,
        retry_after_s=error.retry_after_s,
        resource=error.resource,
    )


def _runs(answers: Sequence[Answer]) -> list[tuple[Outputs, slice]]:
    """Which rows of which batches the answers are, in their order; neighbours are taken as one."""
    found: list[tuple[Outputs, slice]] = []
    batch, first, end = None, 0, 0
    for answer in answers:
        scored = answer.scored
        if scored is None:  # it did not fail, so the model gave something
            raise BackendFailed("an item was not answered")
        if scored.batch is not batch or scored.index != end:
            if batch is not None:
                found.append((batch, slice(first, end)))
            batch, first = scored.batch, scored.index
        end = scored.index + 1
    if batch is not None:
        found.append((batch, slice(first, end)))
    return found


def stacked(parts: Sequence[Array]) -> Array:
    """One array of all rows; what is shorter than others ends in zeros.

    Rows differ where items of several lengths ran in several batches.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(part.shape[1:] == first.shape[1:] for part in parts):
        return np.concatenate(parts)
    if any(part.ndim != first.ndim for part in parts):
        raise BackendFailed("the model gave outputs that differ in their dimensions")
    longest = np.max([part.shape[1:] for part in parts], axis=0).tolist()
    found = np.zeros((sum(map(len, parts)), *longest), dtype=first.dtype)
    if found.dtype == np.object_:
        found[...] = b""
    at = 0
    for part in parts:
        found[(slice(at, at + len(part)), *[slice(size) for size in part.shape[1:]])] = part
        at += len(part)
    return found


def best(array: Array, classes: int, labels: Sequence[str]) -> Array:
    """The highest elements of each row, as `value:index[:label]`; the first of equals."""
    flat = array.reshape(len(array), -1)
    if flat.dtype.kind not in "biuf":
        raise BackendFailed(f"the model gave {flat.dtype}, which has no best")
    names = labels if len(labels) == flat.shape[1] else ()
    order = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")[:, :classes]
    found = np.empty(order.shape, dtype=np.object_)
    for row, indices in enumerate(order.tolist()):
        for column, index in enumerate(indices):
            found[row, column] = _class(flat[row, index], index, names)
    return found


def _class(value: np.generic, index: int, names: Sequence[str]) -> bytes:
    number = f"{value:f}" if value.dtype.kind == "f" else str(int(value))
    label = f":{names[index]}" if names else ""
    return f"{number}:{index}{label}".encode()
