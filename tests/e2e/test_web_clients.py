"""Clients that people have, unmodified, against the suite: each in an environment of its own."""

import asyncio
import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.processes import ROOT, Suite, environment, shell, tool

TRITON = ROOT / ".venv-triton" / "bin" / "python"
NODE = Path(__file__).parent / "node"
CALL_S = 150
ANSWER_S = 60
TRITON_NAMES = (
    "server",
    "infer_text",
    "infer_numbers",
    "parameters",
    "mistakes",
    "async_infer",
    "repository",
    "statistics",
    "with_asyncio",
)


def does(command: list[str], folder: Path = ROOT) -> str:
    """Run it to its end; what it says where it fails is the failure of the test."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=CALL_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


class TestTritonOverHttp:
    """The released tritonclient over HTTP."""

    @pytest.mark.parametrize("name", TRITON_NAMES)
    def test_it_works_unmodified(self, suite: Suite, name: str) -> None:
        if not TRITON.exists():
            pytest.fail("tritonclient is not there: run `make .venv-triton/.done`")
        address = suite.address("gateway")
        does([str(TRITON), "-W", "error", "-m", "tests.e2e.triton_http", name, address])


class TestOpenAiOfJavaScript:
    """The released SDK under Node.js."""

    def test_it_needs_only_a_base_url(self, suite: Suite) -> None:
        if not (NODE / "node_modules" / "openai").exists():
            pytest.fail("the SDK is not there: run `make tests/e2e/node/node_modules/.done`")
        said = does([tool("node"), "openai.js", f"{suite.http}/v1", "smollm2"], NODE)
        assert said.strip().endswith("all of it")


def curl(suite: Suite, path: str, body: Any = None, *more: str) -> str:
    """What curl prints for a request."""
    words = ["curl", "-sS", "--fail-with-body", *more, f"{suite.http}{path}"]
    if body is not None:
        words += ["-H", "content-type: application/json", "-d", json.dumps(body)]
    return does(words)


class TestSimpleRoutes:
    """As small servers have them, with curl."""

    def test_texts(self, suite: Suite) -> None:
        texts = ["I love this film.", "A terrible mess."]
        for more in ({"model_name": "sentiment"}, {}):
            found = json.loads(curl(suite, "/predict", {"texts": texts, **more}))
            assert set(found) == {"predictions", "model_name", "inference_time_ms"}
            assert found["model_name"] == "sentiment"
            assert [one["text"] for one in found["predictions"]] == texts
            assert [one["prediction"] for one in found["predictions"]] == ["positive", "negative"]
            for one in found["predictions"]:
                assert set(one) == {"text", "prediction", "confidence", "probabilities"}
                assert one["confidence"] == one["probabilities"][one["prediction"]]
                assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    def test_a_text(self, suite: Suite) -> None:
        found = json.loads(curl(suite, "/predict", {"text": "I love it"}))
        assert found["prediction"] == "positive"
        assert set(found) == {"prediction", "confidence"}
        asked = {"text": "I love it", "request_id": "mine"}
        assert json.loads(curl(suite, "/predict", asked))["request_id"] == "mine"

    def test_numbers(self, suite: Suite) -> None:
        rows = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
        found = json.loads(curl(suite, "/predict", {"inputs": rows}))
        assert set(found) == {"predictions", "latency_ms"}
        assert found["predictions"] == ["setosa", "virginica"]
        asked = {"inputs": rows, "return_probabilities": True}
        scores = json.loads(curl(suite, "/predict", asked))["probabilities"]
        assert [row.index(max(row)) for row in scores] == [0, 2]

    def test_a_generation_at_once_and_as_it_comes(self, suite: Suite) -> None:
        asked = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
        found = json.loads(curl(suite, "/generate", asked))
        assert set(found) == {"text", "finish_reason", "tokens_generated"}
        assert (found["finish_reason"], found["tokens_generated"]) == ("length", 12)
        assert curl(suite, "/generate", {**asked, "stream": True}, "-N") == found["text"]

    def test_models_out_and_in_again(self, suite: Suite) -> None:
        def loaded() -> dict[str, bool]:
            found = json.loads(curl(suite, "/models"))
            assert all(set(one) == {"name", "version", "loaded", "device"} for one in found)
            return {one["name"]: one["loaded"] for one in found}

        assert loaded() == {"iris": True, "sentiment": True, "smollm2": True}
        curl(suite, "/models/iris", None, "-X", "DELETE")
        assert not loaded()["iris"]
        curl(suite, "/models/iris/load", None, "-X", "POST")
        assert loaded()["iris"]

    def test_health(self, suite: Suite) -> None:
        found = json.loads(curl(suite, "/health"))
        assert found == {
            "status": "healthy",
            "models_loaded": ["iris", "sentiment", "smollm2"],
            "device": "cpu",
        }

    def test_errors_say_what_is_wrong_where_such_clients_look(self, suite: Suite) -> None:
        line = f"curl -sS {suite.http}/predict -H 'content-type: application/json' -d '{{}}'"
        found = json.loads(shell(line))
        assert found["detail"] == found["error"]["message"] == "send texts, or text, or inputs"


class TestOperations:
    """Long work over HTTP: what it is about and what came of it are typed."""

    def test_an_operation_says_of_what_kind_its_parts_are(self, suite: Suite) -> None:
        listed = json.loads(curl(suite, "/registry/v1/operations"))["operations"]
        assert listed, "pushing a model is such work"
        for one in listed:
            assert one["done"], one
            metadata, response = one["metadata"], one["response"]
            kind = "type.googleapis.com/gristmill.registry.v1."
            assert metadata["@type"] == f"{kind}OperationMetadata"
            assert metadata["subject"].startswith("models/")
            assert response["@type"].startswith(kind)
            assert len(response) > 1, "the fields of the type are there too"
            same = json.loads(curl(suite, f"/registry/v1/{one['name']}"))
            assert same == one


class TestWebSockets:
    """A client of WebSockets against the real models."""

    async def test_items_are_classified_as_they_come(self, suite: Suite) -> None:
        texts = {f"item-{n}": f"It was number {n}, and wonderful." for n in range(40)}
        found: dict[str, Any] = {}
        async with asyncio.timeout(ANSWER_S), connect(_socket(suite, "classifier")) as socket:
            for name, text in texts.items():
                item = {"id": name, "item": {"text": {"text": text}}}
                await socket.send(json.dumps({"model": {"model": "sentiment"}, "items": [item]}))
            await socket.send("")
            async for message in socket:
                for one in json.loads(message)["results"]:
                    found[one["id"]] = one["result"]["classification"]["labels"][0]["label"]
        assert set(found) == set(texts)
        assert set(found.values()) == {"positive"}
        assert socket.close_code == 1000

    async def test_a_conversation_remembers_and_can_be_interrupted(self, suite: Suite) -> None:
        address = _socket(suite, "generator")
        async with asyncio.timeout(ANSWER_S), connect(address, subprotocols=_bearer()) as socket:
            assert socket.subprotocol == "gristmill.v1"
            await socket.send(json.dumps({"open": {"model": {"model": "smollm2"}}}))
            await socket.send(_turn("first", "My name is Ada.", maxTokens=8))
            first = await _until_finished(socket, "first")
            await socket.send(_turn("endless", "Count.", maxTokens=2000, ignoreEos=True))
            await _until_finished(socket, "endless", deltas=3)
            await socket.send(json.dumps({"cancel": {"id": "endless"}}))
            cancelled = await _until_finished(socket, "endless")
            await socket.send(_turn("last", "Who am I?", maxTokens=8))
            last = await _until_finished(socket, "last")
            await socket.send("")
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert socket.close_code == 1000
        reason = cancelled["finished"]["choices"][0]["finishReason"]
        assert reason == "FINISH_REASON_CANCELLED"
        read = [one["finished"]["usage"]["promptTokens"] for one in (first, last)]
        assert read[1] > read[0] + 8, "the history is not read"

    async def test_pages_of_others_may_not_open_one(self, suite: Suite) -> None:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(_socket(suite, "classifier"), origin="https://evil.example"):  # type: ignore[arg-type]  # as sent
                pass
        assert refused.value.response.status_code == 403


def _socket(suite: Suite, service: str) -> str:
    verb = {"classifier": "classify", "generator": "generate"}[service]
    return f"ws://{suite.address('gateway')}/{service}/v1/{verb}:bidi"


def _bearer() -> Any:
    token = base64.urlsafe_b64encode(b"nobody asks for it here").decode().rstrip("=")
    return ["gristmill.v1", f"gristmill.bearer.{token}"]


def _turn(name: str, text: str, **params: Any) -> str:
    message = {"role": "ROLE_USER", "content": text}
    return json.dumps({"turn": {"id": name, "messages": [message], "params": params}})


async def _until_finished(socket: Any, turn: str, deltas: int = 0) -> Any:
    """The last message of a turn; with `deltas`, the one that is as many pieces of text in."""
    seen = 0
    async for text in socket:
        message = json.loads(text)
        assert "error" not in message, message
        if message["turnId"] != turn:
            continue
        seen += "delta" in message
        if "finished" in message or (deltas and seen == deltas):
            return message
    raise AssertionError(f"{turn} did not finish")
