"""What callers do with the released tritonclient over HTTP; run by its own interpreter.

`python -m tests.e2e.triton_http NAME ADDRESS` does one thing and ends; what is not as it should be
is an exception.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tritonclient.http as triton  # type: ignore[import-not-found,unused-ignore]
import tritonclient.http.aio as triton_aio  # type: ignore[import-not-found,unused-ignore]
from tritonclient.utils import (  # type: ignore[import-not-found,unused-ignore]
    InferenceServerException,
)

SENTENCES = ("I love this film, it is wonderful.", "The worst evening, a terrible mess.")
LABELS = ["positive", "negative"]
FLOWERS = ((5.1, 3.5, 1.4, 0.2), (6.7, 3.0, 5.2, 2.3))
SPECIES = ["setosa", "virginica"]
Client = Any


def tensor(name: str, array: Any, datatype: str, *, binary: bool = True) -> Any:
    """An input, as bytes or in JSON."""
    given = triton.InferInput(name, array.shape, datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def texts(*sentences: str, shape: Sequence[int] = (), binary: bool = True) -> Any:
    """The input of a text model."""
    array = np.array([s.encode() for s in sentences], dtype=np.object_)
    array = array.reshape(tuple(shape) or (len(sentences), 1))
    return tensor("text", array, "BYTES", binary=binary)


def flowers(*, binary: bool = True) -> Any:
    """The input of the model of flowers."""
    return tensor("features", np.array(FLOWERS, dtype=np.float32), "FP32", binary=binary)


def wanted(name: str, count: int = 0, *, binary: bool = True) -> list[Any]:
    """An output, as bytes or in JSON, as classes where a count is given."""
    return [triton.InferRequestedOutput(name, binary_data=binary, class_count=count)]


def labels(array: Any) -> list[str]:
    """The label of the best class of each item."""
    return [(row[0] if isinstance(row[0], str) else row[0].decode()).split(":")[2] for row in array]


def refused(status: str, call: Callable[[], Any]) -> str:
    """The words of the error that a call must end with."""
    try:
        answer = call()
    except InferenceServerException as error:
        assert error.status() == status, (error.status(), error)
        return str(error.message())
    raise AssertionError(f"the call was answered: {answer}")


def server(client: Client) -> None:
    """Health and metadata."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sentiment")
    assert client.is_model_ready("sentiment", "1")
    assert client.is_model_ready("smollm2")
    assert not client.is_model_ready("sentiment", "99")
    assert not client.is_model_ready("nobody")
    found = client.get_server_metadata()
    assert found["name"] == "gristmill"
    assert "binary_tensor_data" in found["extensions"]
    metadata = client.get_model_metadata("iris")
    assert metadata["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]
    assert [one["name"] for one in metadata["outputs"]] == ["logits", "probabilities"]
    assert metadata["versions"], "which of them it is may have changed"
    config = client.get_model_config("iris")
    assert config["max_batch_size"] >= 1
    assert config["input"][0]["dims"] == [4]
    generated = client.get_model_metadata("smollm2")
    assert [one["name"] for one in generated["inputs"]] == ["text_input"]
    refused("404", lambda: client.get_model_metadata("nobody"))


def infer_text(client: Client) -> None:
    """Texts in, labels or tensors out, each as bytes and in JSON."""
    for binary in (True, False):
        for shape in ((2, 1), (2,)):
            given = [texts(*SENTENCES, shape=shape, binary=binary)]
            outputs = wanted("probabilities", 1, binary=binary)
            result = client.infer("sentiment", given, request_id="mine", outputs=outputs)
            assert labels(result.as_numpy("probabilities")) == LABELS
            assert result.get_response()["id"] == "mine"
            assert result.get_response()["model_version"] == "1"
    found = client.infer("sentiment", [texts(*SENTENCES)], model_version="1")
    scores = found.as_numpy("probabilities")
    assert (scores.shape, scores.dtype) == ((2, 2), np.float32)
    assert np.allclose(scores.sum(axis=1), 1)
    assert found.as_numpy("logits").argmax(axis=1).tolist() == [1, 0]
    umlauts = client.infer("sentiment", [texts("Schön 好 🎉", binary=False)])
    assert umlauts.as_numpy("probabilities").shape == (1, 2)


def infer_numbers(client: Client) -> None:
    """The same numbers, whichever way they travel."""
    found = []
    for binary_in in (True, False):
        for binary_out in (True, False):
            outputs = wanted("probabilities", binary=binary_out)
            result = client.infer("iris", [flowers(binary=binary_in)], outputs=outputs)
            found.append(result.as_numpy("probabilities"))
    for array in found:
        assert array.dtype == np.float32
        assert np.array_equal(array, found[0])
    best = client.infer("iris", [flowers()], outputs=wanted("probabilities", 3))
    assert labels(best.as_numpy("probabilities")) == SPECIES
    mixed = [*wanted("probabilities"), *wanted("logits", binary=False)]
    both = client.infer("iris", [flowers()], outputs=mixed)
    assert np.array_equal(both.as_numpy("probabilities"), found[0])
    assert both.as_numpy("logits").shape == (2, 3)


def parameters(client: Client) -> None:
    """Priority, timeout and the caller's own."""
    given = [texts(SENTENCES[0])]
    client.infer("sentiment", given, priority=1, timeout=20_000_000, parameters={"no_cache": True})
    said = refused("400", lambda: client.infer("sentiment", given, priority=10))
    assert "priority" in said
    refused("400", lambda: client.infer("sentiment", given, sequence_id=7))


def mistakes(client: Client) -> None:
    """What is wrong is said, by its name."""
    assert "nobody" in refused("404", lambda: client.infer("nobody", [flowers()]))
    assert "features" in refused("400", lambda: client.infer("iris", [texts("x")]))
    wrong = tensor("features", np.zeros((2, 3), dtype=np.float32), "FP32")
    refused("400", lambda: client.infer("iris", [wrong]))
    outputs = wanted("nothing")
    assert "nothing" in refused("400", lambda: client.infer("iris", [flowers()], outputs=outputs))
    packed = {"request_compression_algorithm": "gzip"}
    said = refused("415", lambda: client.infer("iris", [flowers()], **packed))
    assert "Content-Encoding" in said
    shared = triton.InferInput("features", [2, 4], "FP32")
    shared.set_shared_memory("region", 32)
    assert "shared memory" in refused("400", lambda: client.infer("iris", [shared]))


def async_infer(client: Client) -> None:
    """Several at once, over several connections."""
    waiting = [client.async_infer("iris", [flowers()]) for _ in range(16)]
    for one in waiting:
        array = one.get_result().as_numpy("probabilities")
        assert array.argmax(axis=1).tolist() == [0, 2]


def repository(client: Client) -> None:
    """What there is, out and in again."""
    states = {one["state"] for one in client.get_model_repository_index() if one["name"] == "iris"}
    assert "READY" in states
    client.unload_model("iris")
    assert not client.is_model_ready("iris")
    client.load_model("iris")
    assert client.is_model_ready("iris")
    refused("404", lambda: client.load_model("nobody"))
    assert "config" in refused("400", lambda: client.load_model("iris", config="{}"))


def statistics(client: Client) -> None:
    """Counts grow with what is inferred."""
    before = _inferred(client)
    client.infer("iris", [flowers()], parameters={"no_cache": True})
    assert _inferred(client) == before + 2
    assert len(client.get_inference_statistics()["model_stats"]) >= 2


def _inferred(client: Client) -> int:
    (found,) = client.get_inference_statistics("iris")["model_stats"]
    return int(found["inference_count"])


def with_asyncio(client: Client) -> None:
    """The other client of the package."""
    asyncio.run(_with_asyncio(sys.argv[2]))


async def _with_asyncio(address: str) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        results = await asyncio.gather(*(client.infer("iris", [flowers()]) for _ in range(8)))
    for one in results:
        assert one.as_numpy("probabilities").argmax(axis=1).tolist() == [0, 2]


def main() -> None:
    """Do what the first argument names, at the address that is the second."""
    _, name, address = sys.argv
    client = triton.InferenceServerClient(address, concurrency=4)
    try:
        globals()[name](client)
    finally:
        client.close()


if __name__ == "__main__":
    main()
