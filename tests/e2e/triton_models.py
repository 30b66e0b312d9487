"""Health, models and their statistics with the released tritonclient; run by `triton_calls.py`."""

import time

import numpy as np
from tritonclient.utils import (  # type: ignore[import-not-found,unused-ignore]
    InferenceServerException,
)

from tests.e2e.triton_parts import (
    ANEW,
    FLOWERS,
    READY_S,
    Client,
    classes,
    executed,
    features,
    labels,
    refused,
    text,
)


def wait(client: Client) -> None:
    """Until the server and both models are ready."""
    end = time.monotonic() + READY_S
    while True:
        try:
            if client.is_server_ready() and all(map(client.is_model_ready, ("sentiment", "iris"))):
                return
        except InferenceServerException:
            pass
        assert time.monotonic() < end, "the models did not become ready"
        time.sleep(0.1)


def server(client: Client) -> None:
    """Health, and what the server is."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sentiment")
    assert client.is_model_ready("sentiment", "1")
    assert not client.is_model_ready("sentiment", "7")
    assert not client.is_model_ready("nobody")
    told = client.get_server_metadata(as_json=True)
    assert told["name"] == "gristmill"
    assert told["version"]
    assert {"classification", "model_repository", "statistics"} <= set(told["extensions"])


def models(client: Client) -> None:
    """Metadata and configuration, as messages and as JSON."""
    told = client.get_model_metadata("iris")
    assert (told.name, list(told.versions), told.platform) == ("iris", ["1"], "onnxruntime_onnx")
    (given,) = told.inputs
    assert (given.name, given.datatype, list(given.shape)) == ("features", "FP32", [-1, 4])
    assert [(o.name, list(o.shape)) for o in told.outputs] == [
        ("logits", [-1, 3]),
        ("probabilities", [-1, 3]),
    ]
    json = client.get_model_metadata("sentiment", "1", as_json=True)
    assert json["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1", "1"]}]
    config = client.get_model_config("iris").config
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 256)
    assert [list(given.dims) for given in config.input] == [[4]]
    assert config.dynamic_batching.priority_levels == 9
    assert config.instance_group[0].count >= 1
    json = client.get_model_config("sentiment", as_json=True)["config"]
    assert json["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": ["1"]}]
    assert "positive" in json["parameters"]["labels"]["string_value"]
    assert "nobody" in refused("NOT_FOUND", lambda: client.get_model_metadata("nobody"))


def repository(client: Client) -> None:
    """List, unload, load."""
    index = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in index] == [
        ("iris", "1", "READY"),
        ("sentiment", "1", "READY"),
    ]
    client.unload_model("iris", unload_dependents=True)
    assert not client.is_model_ready("iris")
    refused("NOT_FOUND", lambda: client.infer("iris", [features(FLOWERS[0])]))
    json = client.get_model_repository_index(as_json=True)["models"]
    assert json[0] == {
        "name": "iris",
        "version": "1",
        "state": "UNAVAILABLE",
        "reason": "unloaded",
    }
    said = refused("INVALID_ARGUMENT", lambda: client.load_model("iris", config="{}"))
    assert "registered version" in said
    files = {"file:1/model.onnx": b"x"}
    refused("INVALID_ARGUMENT", lambda: client.load_model("iris", config="{}", files=files))
    refused("NOT_FOUND", lambda: client.load_model("nobody"))
    client.load_model("iris")
    assert client.is_model_ready("iris")
    assert labels(client.infer("iris", [features(FLOWERS[0])], outputs=classes(1))) == ["setosa"]


def statistics(client: Client) -> None:
    """What calls do to the sums."""
    client.infer("iris", [features(FLOWERS[0])], parameters=ANEW)
    (before,) = client.get_inference_statistics("iris", "1").model_stats
    for _ in range(5):
        client.infer("iris", [features(*FLOWERS, *FLOWERS)], parameters=ANEW)
    (after,) = client.get_inference_statistics("iris").model_stats
    assert after.inference_count - before.inference_count == 20
    assert 1 <= after.execution_count - before.execution_count <= 20
    assert after.last_inference >= before.last_inference > 0
    old, new = before.inference_stats, after.inference_stats
    assert new.success.count - old.success.count == 5
    assert new.success.ns > old.success.ns
    assert {s.batch_size for s in after.batch_stats} & {4}
    every = client.get_inference_statistics(as_json=True)["model_stats"]
    assert [(s["name"], s["version"]) for s in every] == [("iris", "1"), ("sentiment", "1")]
    refused("NOT_FOUND", lambda: client.get_inference_statistics("nobody"))


def caching(client: Client) -> None:
    """What was answered before is not computed again, unless a request says so."""
    assert client.get_model_config("sentiment").config.response_cache.enable
    given = [text(f"Nobody said that before {time.time_ns()}.")]
    first = client.infer("sentiment", given).as_numpy("logits")
    (before,) = client.get_inference_statistics("sentiment").model_stats
    again = client.infer("sentiment", given).as_numpy("logits")
    (after,) = client.get_inference_statistics("sentiment").model_stats
    assert np.array_equal(first, again)
    assert after.inference_count == before.inference_count
    assert after.inference_stats.cache_hit.count == before.inference_stats.cache_hit.count + 1
    client.infer("sentiment", given, parameters=ANEW)
    assert executed(client, "sentiment") == after.inference_count + 1
