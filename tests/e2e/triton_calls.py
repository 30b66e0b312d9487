"""What callers do with the released tritonclient; run by its own interpreter, one name at a time.

`python -m tests.e2e.triton_calls NAME ADDRESS` does it and ends; what is not as it should be is an
exception.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton  # type: ignore[import-not-found,unused-ignore]

from tests.e2e.triton_models import caching, models, repository, server, statistics, wait
from tests.e2e.triton_parts import (
    ANEW,
    ANSWER_S,
    FLOWERS,
    LABELS,
    MANY,
    SENTENCES,
    SPECIES,
    Client,
    classes,
    executed,
    features,
    labels,
    many_texts,
    numbers,
    refused,
    text,
    until,
)
from tests.e2e.triton_streams import cancelled_stream, stream, strict_stream, with_asyncio


def infer_text(client: Client) -> None:
    """A text model: texts in, tensors or labels out."""
    for shape in ((2, 1), (2,)):
        given = [text(*SENTENCES, shape=shape)]
        result = client.infer("sentiment", given, request_id="mine", outputs=classes(1))
        assert labels(result) == list(LABELS)
        assert result.get_response().id == "mine"
        assert result.get_response().model_version == "1"
    result = client.infer("sentiment", [text(*SENTENCES)], model_version="1")
    found = result.as_numpy("probabilities")
    assert (found.shape, found.dtype) == ((2, 2), np.float32)
    assert np.allclose(found.sum(axis=1), 1)
    assert result.as_numpy("logits").argmax(axis=1).tolist() == [1, 0]
    assert result.as_numpy("scores") is None
    found = client.infer("sentiment", [text("so so")], outputs=classes(9)).as_numpy("probabilities")
    assert found.shape == (1, 2)
    ids = np.array([[101, 2204, 102]], dtype=np.int64)
    own = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    given = [numbers(name, "INT64", array) for name, array in own.items()]
    assert labels(client.infer("sentiment", given, outputs=classes(1))) == ["positive"]


def infer_tensors(client: Client) -> None:
    """A model of numbers: a batch of many is many items."""
    result = client.infer("iris", [features(*FLOWERS)])
    found = result.as_numpy("probabilities")
    assert (found.shape, found.argmax(axis=1).tolist()) == ((2, 3), [0, 2])
    only = client.infer(
        "iris", [features(*FLOWERS)], outputs=[triton.InferRequestedOutput("logits")]
    )
    assert [o.name for o in only.get_response().outputs] == ["logits"]
    assert np.array_equal(only.as_numpy("logits"), result.as_numpy("logits"))
    assert labels(client.infer("iris", [features(*FLOWERS)], outputs=classes(3))) == list(SPECIES)
    many = np.random.default_rng(0).uniform(0, 8, (4096, 4)).astype(np.float32)
    found = client.infer("iris", [numbers("features", "FP32", many)]).as_numpy("probabilities")
    assert found.shape == (4096, 3)
    alone = client.infer("iris", [features(many[4000])]).as_numpy("probabilities")
    assert np.allclose(found[4000], alone[0], atol=1e-6)


def parameters(client: Client) -> None:
    """Priority, timeout, and what is a caller's own."""
    how = {"outputs": classes(1), "priority": 1, "timeout": 30_000_000}
    mine = {"mine": "x", "number": 1, "flag": True, "half": 0.5}
    result = client.infer("iris", [features(FLOWERS[0])], parameters=mine, **how)
    assert labels(result) == ["setosa"]
    given = [features(FLOWERS[0])]
    assert "priority" in refused(
        "INVALID_ARGUMENT", lambda: client.infer("iris", given, priority=10)
    )
    said = refused("INVALID_ARGUMENT", lambda: client.infer("iris", given, sequence_id=5))
    assert "sequence_id" in said
    how = {"timeout": 1, "parameters": ANEW}
    refused("DEADLINE_EXCEEDED", lambda: client.infer("iris", given, **how))


def mistakes(client: Client) -> None:
    """Errors have a status and say what is wrong."""
    flower = np.array([FLOWERS[0]])
    for status, word, given, outputs in (
        ("INVALID_ARGUMENT", "FP64", [numbers("features", "FP64", flower)], None),
        ("INVALID_ARGUMENT", "shape", [features(FLOWERS[0][:3])], None),
        ("INVALID_ARGUMENT", "features", [text("x")], None),
        ("INVALID_ARGUMENT", "inputs", [], None),
        ("INVALID_ARGUMENT", "logits", [features(FLOWERS[0])], classes(1, "scores")),
    ):
        call = lambda given=given, outputs=outputs: client.infer("iris", given, outputs=outputs)  # noqa: E731
        assert word in refused(status, call)
    refused("NOT_FOUND", lambda: client.infer("nobody", [text("x")]))
    refused("NOT_FOUND", lambda: client.infer("iris", [features(FLOWERS[0])], model_version="7"))
    refused("INVALID_ARGUMENT", lambda: client.infer("iris", [], model_version="new"))
    shared = triton.InferInput("features", [1, 4], "FP32")
    shared.set_shared_memory("region", 16)
    assert "shared memory" in refused("INVALID_ARGUMENT", lambda: client.infer("iris", [shared]))
    for call in (
        client.get_trace_settings,
        client.get_log_settings,
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
    ):
        refused("UNIMPLEMENTED", call)


def async_infer(client: Client) -> None:
    """Many calls at once, each answered by its own."""
    done = threading.Semaphore(0)
    found: dict[int, Any] = {}

    def start(number: int) -> None:
        def told(result: Any, error: Any) -> None:
            found[number] = error or result
            done.release()

        given = [features(FLOWERS[number % 2])]
        client.async_infer("iris", given, told, request_id=str(number), outputs=classes(1))

    for number in range(200):
        start(number)
    for _ in range(200):
        assert done.acquire(timeout=ANSWER_S)
    for number, result in found.items():
        assert result.get_response().id == str(number)
        assert labels(result) == [SPECIES[number % 2]]


def client_timeout(client: Client) -> None:
    """The caller's deadline ends the call and the work."""
    before = executed(client, "sentiment")
    how = {"parameters": ANEW, "client_timeout": 0.2}
    refused("DEADLINE_EXCEEDED", lambda: client.infer("sentiment", many_texts(), **how))
    client.infer("sentiment", [text("ok")], client_timeout=ANSWER_S)
    assert executed(client, "sentiment") - before < MANY
    assert client.is_server_live(client_timeout=ANSWER_S)


def cancellation(client: Client) -> None:
    """A call that is taken back is not computed."""
    before = executed(client, "sentiment")
    ended = threading.Event()
    errors: list[Any] = []

    def told(result: Any, error: Any) -> None:
        errors.append(error)
        ended.set()

    call = client.async_infer(
        "sentiment", many_texts(), told, parameters=ANEW, client_timeout=ANSWER_S
    )
    until(lambda: executed(client, "sentiment") > before)
    call.cancel()
    assert ended.wait(ANSWER_S)
    assert errors[0].status() == "StatusCode.CANCELLED"
    client.infer("sentiment", [text("ok")])
    assert executed(client, "sentiment") - before < MANY


CALLS: dict[str, Callable[[Client], None]] = {
    call.__name__: call
    for call in (
        wait,
        server,
        models,
        infer_text,
        infer_tensors,
        parameters,
        mistakes,
        async_infer,
        client_timeout,
        cancellation,
        stream,
        strict_stream,
        cancelled_stream,
        repository,
        statistics,
        caching,
        with_asyncio,
    )
}


if __name__ == "__main__":
    with triton.InferenceServerClient(sys.argv[2]) as opened:
        CALLS[sys.argv[1]](opened)
