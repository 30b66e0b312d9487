"""What the calls with tritonclient are made of; only for an interpreter that has it."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found,unused-ignore]
from tritonclient.utils import (  # type: ignore[import-not-found,unused-ignore]
    InferenceServerException,
)

READY_S = 120.0
ANSWER_S = 60.0
SENTENCES = ("I love this film, it is wonderful.", "The worst evening, a terrible mess.")
LABELS = ("positive", "negative")
FLOWERS = ((5.1, 3.5, 1.4, 0.2), (6.7, 3.0, 5.2, 2.3))
SPECIES = ("setosa", "virginica")
MANY = 800
"""Texts that take seconds to compute."""
ANEW = {"no_cache": True}
"""The parameters of a request that is to be computed."""
Client = Any


def text(*sentences: str, shape: Sequence[int] = ()) -> Any:
    """The input of a text model."""
    array = np.array([s.encode() for s in sentences], dtype=np.object_)
    array = array.reshape(tuple(shape) or (len(sentences), 1))
    given = triton.InferInput("text", array.shape, "BYTES")
    given.set_data_from_numpy(array)
    return given


def numbers(name: str, datatype: str, array: Any) -> Any:
    """An input of numbers."""
    given = triton.InferInput(name, array.shape, datatype)
    given.set_data_from_numpy(array)
    return given


def features(*flowers: Sequence[float]) -> Any:
    """The input of the model of flowers."""
    return numbers("features", "FP32", np.array(flowers, dtype=np.float32))


def many_texts(count: int = MANY) -> list[Any]:
    """Texts that differ, so that none is the answer to another."""
    said = "It was what it was, and nobody could say more of it than number {}."
    return [text(*map(said.format, range(count)))]


def classes(count: int, name: str = "probabilities") -> list[Any]:
    """The best classes of an output."""
    return [triton.InferRequestedOutput(name, class_count=count)]


def labels(result: Any, name: str = "probabilities") -> list[str]:
    """The label of the best class of each item."""
    found = result.as_numpy(name)
    return [row[0].decode().split(":")[2] for row in found]


def refused(status: str, call: Callable[[], Any]) -> str:
    """The words of the error that a call must end with."""
    try:
        answer = call()
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{status}", error
        return str(error.message())
    raise AssertionError(f"the call was answered: {answer}")


def executed(client: Client, model: str) -> int:
    """Items that a model has run."""
    (found,) = client.get_inference_statistics(model).model_stats
    return int(found.inference_count)


def until(true: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""
    end = time.monotonic() + ANSWER_S
    while not true():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.01)


class Answers:
    """What a stream has told."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self._told = threading.Semaphore(0)

    def __call__(self, result: Any, error: Any) -> None:
        self.found.append(error or result)
        self._told.release()

    def wait(self, count: int) -> None:
        """Until so many more have come."""
        for _ in range(count):
            assert self._told.acquire(timeout=ANSWER_S)
