"""The gateway over real sockets: JSON in and out, streams, and the status of every error.

Nothing sleeps: each test waits for the event that it is about. Cancellation, draining and
authentication have files of their own in tests/unit/gateway.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import result_pb2
from structlog.testing import capture_logs

from services.runtime import errors
from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import BODY, CLASSIFY, STREAM, error_of, events, stack


class TestUnary:
    async def test_answers_json_with_fields_that_hold_their_default(self) -> None:
        async def classified(request: Any, context: Any) -> Any:
            label = result_pb2.LabelScore(label="no", index=0, score=0.0)
            outcome = result_pb2.Classification(labels=[label])
            return pb.ClassifyResponse(results=[result_pb2.ItemResult(classification=outcome)])

        async with stack(classified) as s:
            response = await s.classify()
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        (label,) = response.json()["results"][0]["classification"]["labels"]
        assert label == {"label": "no", "index": 0, "score": 0.0}

    async def test_takes_both_names_of_a_field(self) -> None:
        async with stack() as s:
            for options in ({"topK": 2}, {"top_k": 2}):
                await soon(s.client.post(CLASSIFY, json={**BODY, "options": options}))
        assert [request.options.top_k for request, *_ in s.calls] == [2, 2]

    async def test_path_query_and_body_make_one_request(self) -> None:
        async with stack() as s:
            response = await s.client.patch(
                "/registry/v1/models/sentiment?update_mask=description,labels",
                json={"description": "d", "labels": {"team": "nlp"}},
            )
        model = response.json()["model"]
        assert model["name"] == "models/sentiment"
        assert model["description"] == "d|description,labels"
        assert model["labels"] == {"team": "nlp"}

    async def test_a_verb_is_not_a_part_of_a_name(self) -> None:
        async with stack() as s:
            named = await s.client.get("/registry/v1/models/sentiment")
            verb = await s.client.get("/registry/v1/models/sentiment:archive")
        assert named.json()["model"]["name"] == "models/sentiment"
        error_of(verb, 405, "METHOD_NOT_ALLOWED")
        assert verb.headers["allow"] == "POST"

    async def test_headers_reach_the_service(self) -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        async with stack() as s:
            response = await s.classify(
                headers={
                    "x-request-id": "abc-1",
                    "traceparent": trace,
                    "grpc-metadata-x-user": "u1",
                    "x-gristmill-timeout-ms": "9000",
                }
            )
        assert response.headers["x-request-id"] == "abc-1"
        _, call, remaining = s.calls[0]
        assert call.request_id == "abc-1"
        assert call.metadata["traceparent"] == trace
        assert call.metadata["x-user"] == "u1"
        assert 5 < remaining <= 9.5

    async def test_a_deadline_is_always_sent(self) -> None:
        async with stack(default_timeout_s=7.0) as s:
            await s.classify()
            await s.classify(headers={"grpc-timeout": "3S"})
        assert 5 < s.calls[0][2] <= 7.5
        assert 1 < s.calls[1][2] <= 3.5


class TestRefusedRequests:
    @pytest.mark.parametrize(
        ("body", "path"),
        [
            ({"itemz": []}, "itemz"),
            ({"items": [{"text": {"text": "x", "lang": "en"}}]}, "items[0].text.lang"),
            ({"items": [{"textPair": {"first": 1}}]}, "items[0].text_pair.first"),
            ({"items": [{"text": {}, "image": {}}]}, "items[0].image"),
            ({"options": {"topK": -1}}, "options.top_k"),
            ({"options": []}, "options"),
            ([], "body"),
        ],
    )
    async def test_a_field_is_named_by_its_path(self, body: Any, path: str) -> None:
        async with stack() as s:
            response = await s.client.post(CLASSIFY, json=body)
        error = error_of(response, 400, "INVALID_FIELD")
        (violations,) = [d["fieldViolations"] for d in error["details"] if "fieldViolations" in d]
        assert [violation["field"] for violation in violations] == [path]
        assert s.calls == []

    async def test_depth_is_bounded_before_anything_is_built(self) -> None:
        deep = b'{"items":' + b"[" * 5000 + b"]" * 5000 + b"}"
        shallow = b'{"items":' + b"[" * 20 + b"]" * 20 + b"}"
        async with stack(max_json_depth=20) as s:
            for body in (deep, shallow):
                headers = {"content-type": "application/json"}
                response = await s.client.post(CLASSIFY, content=body, headers=headers)
                assert "nested deeper" in error_of(response, 400, "INVALID_FIELD")["message"]

    async def test_size_is_limited_with_and_without_a_length(self) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(64):
                yield b" " * 1024

        async with stack(max_body_bytes=32 * 1024) as s:
            headers = {"content-type": "application/json"}
            for content in (b" " * 64 * 1024, chunks()):
                response = await s.client.post(CLASSIFY, content=content, headers=headers)
                error_of(response, 413, "MESSAGE_TOO_LARGE")
            assert (await s.classify()).status_code == 200

    async def test_encodings_and_types_are_not_the_clients_choice(self) -> None:
        async with stack() as s:
            for headers in (
                {"content-encoding": "gzip", "content-type": "application/json"},
                {"content-type": "multipart/form-data; boundary=x"},
                {"content-type": "application/x-www-form-urlencoded"},
            ):
                response = await s.client.post(CLASSIFY, content=b"{}", headers=headers)
                error_of(response, 415, "MEDIA_TYPE_REFUSED")

    async def test_unknown_paths_and_methods(self) -> None:
        async with stack() as s:
            error_of(await s.client.get("/nothing"), 404, "ROUTE_NOT_FOUND")
            error_of(await s.client.get("/registry/v1/models/"), 404, "ROUTE_NOT_FOUND")
            error_of(await s.client.get(CLASSIFY), 405, "METHOD_NOT_ALLOWED")
            error_of(await s.client.post("/docs"), 405, "METHOD_NOT_ALLOWED")

    async def test_bidi_is_answered_from_the_table(self) -> None:
        async with stack() as s:
            response = await s.client.get("/classifier/v1/classify:bidi")
        error_of(response, 426, "UPGRADE_REQUIRED")
        assert response.headers["upgrade"] == "websocket"

    async def test_foreign_origins_and_rebound_names_are_refused(self) -> None:
        async with stack(allowed_origins="https://ui.example") as s:
            for method in ("GET", "POST", "DELETE"):
                for origin in ("https://evil.example", "null"):
                    response = await s.client.request(method, "/docs", headers={"origin": origin})
                    error_of(response, 403, "ORIGIN_REFUSED")
            rebound = {"host": "evil.example", "origin": "http://evil.example"}
            error_of(await s.client.get("/docs", headers=rebound), 421, "HOST_REFUSED")
            own = f"http://127.0.0.1:{s.gateway.port}"
            assert (await s.classify(headers={"origin": own})).status_code == 200
            allowed = await s.classify(headers={"origin": "https://ui.example"})
            assert allowed.headers["access-control-allow-origin"] == "https://ui.example"
            asked = {"origin": "https://ui.example", "access-control-request-method": "POST"}
            assert (await s.client.options(CLASSIFY, headers=asked)).status_code == 204


DOMAIN_ERRORS = [
    (errors.InvalidRequest.field("items", "bad"), 400, "INVALID_FIELD"),
    (errors.Unauthenticated("who"), 401, "CREDENTIALS_MISSING"),
    (errors.PermissionDenied("no"), 403, "SCOPE_MISSING"),
    (errors.NotFound("m", resource=("model", "m")), 404, "MODEL_NOT_FOUND"),
    (errors.AlreadyExists("m"), 409, "ALREADY_EXISTS"),
    (errors.Conflict("m"), 409, "CONCURRENT_CHANGE"),
    (errors.FailedPrecondition("m"), 400, "WRONG_STATE"),
    (errors.OutOfRange("m"), 400, "OFFSET_OUT_OF_RANGE"),
    (errors.NotImplementedYet("m"), 501, "NOT_IMPLEMENTED"),
    (errors.Overloaded("full", retry_after_s=2.2), 429, "QUEUE_FULL"),
    (errors.QuotaExceeded("q", retry_after_s=0.2), 429, "QUOTA_EXCEEDED"),
    (errors.DeadlineTooShort("d"), 504, "DEADLINE_TOO_SHORT"),
    (errors.ModelNotReady("m", retry_after_s=5.0), 503, "MODEL_NOT_READY"),
    (errors.EngineRestarting("m"), 503, "ENGINE_RESTARTING"),
    (errors.Draining("m"), 503, "DRAINING"),
    (errors.DataLoss("m"), 500, "ARTIFACT_CORRUPT"),
    (errors.BackendFailed("secret"), 500, "BACKEND_FAILED"),
    (ValueError("secret"), 500, "INTERNAL"),
]
RETRY_AFTER = {"QUEUE_FULL": "3", "QUOTA_EXCEEDED": "1", "MODEL_NOT_READY": "5"}


class TestErrors:
    async def test_each_domain_error_has_its_status_and_reason(self) -> None:
        errors_left = iter(DOMAIN_ERRORS)

        async def failing(request: Any, context: Any) -> Any:
            raise next(errors_left)[0]

        with capture_logs() as lines:
            async with stack(failing) as s:
                for _, status, reason in DOMAIN_ERRORS:
                    response = await s.classify()
                    error = error_of(response, status, reason)
                    infos = [
                        d for d in error["details"] if d["@type"].endswith("google.rpc.ErrorInfo")
                    ]
                    assert [(info["reason"], info["domain"]) for info in infos] == [
                        (reason, "gristmill")
                    ]
                    assert "secret" not in response.text
                    expected = RETRY_AFTER.get(reason, "1" if status == 503 else None)
                    assert response.headers.get("retry-after") == expected
        logged = [line for line in lines if line["event"] == "request failed"]
        assert {line["reason"] for line in logged} == {
            "ARTIFACT_CORRUPT",
            "BACKEND_FAILED",
            "INTERNAL",
        }

    async def test_the_deadline_passes(self) -> None:
        async def stuck(request: Any, context: Any) -> Any:
            await asyncio.Event().wait()

        async with stack(stuck) as s:
            response = await s.classify(headers={"x-gristmill-timeout-ms": "100"})
        error_of(response, 504, "DEADLINE_EXPIRED")

    async def test_a_cancelled_call_is_499(self) -> None:
        async def cancelled(request: Any, context: Any) -> Any:
            await context.abort(grpc.StatusCode.CANCELLED, "gave up")

        async with stack(cancelled) as s:
            error_of(await s.classify(), 499, "CANCELLED")

    async def test_a_service_that_is_away_is_503_and_not_named(self) -> None:
        async with stack(classifier="127.0.0.1:1") as s:
            response = await s.classify()
        error_of(response, 503, "UPSTREAM_UNAVAILABLE")
        assert "127.0.0.1" not in response.text
        assert response.headers["retry-after"] == "1"

    async def test_too_many_requests_at_once(self) -> None:
        arrived, release = asyncio.Event(), asyncio.Event()

        async def held(request: Any, context: Any) -> Any:
            arrived.set()
            await release.wait()

        async with stack(held, max_concurrent_requests=1) as s:
            first = asyncio.create_task(s.classify())
            await soon(arrived.wait())
            error_of(await s.classify(), 429, "QUEUE_FULL")
            release.set()
            assert (await soon(first)).status_code == 200


async def two_then(error: Exception | None, request: Any, context: Any) -> AsyncIterator[Any]:
    """Two results, then an end."""
    for index in range(2):
        yield pb.ClassifyStreamResponse(index=index, model="m")
    if error:
        raise error


class TestStreams:
    async def test_server_sent_events(self) -> None:
        async with stack(stream=lambda r, c: two_then(None, r, c)) as s:
            response = await soon(s.client.post(STREAM, json=BODY))
        assert response.headers["content-type"] == "text/event-stream"
        blocks = events(response.text)
        assert all(block.startswith("data: ") for block in blocks)
        assert [json.loads(block[6:])["index"] for block in blocks] == [0, 1]

    async def test_lines(self) -> None:
        error = errors.Overloaded("full")
        async with stack(stream=lambda r, c: two_then(error, r, c)) as s:
            headers = {"accept": "application/x-ndjson"}
            response = await soon(s.client.post(STREAM, json=BODY, headers=headers))
        assert response.headers["content-type"] == "application/x-ndjson"
        *lines, last = [json.loads(line) for line in response.text.splitlines()]
        assert [line["index"] for line in lines] == [0, 1]
        assert last["error"]["reason"] == "QUEUE_FULL"

    async def test_an_error_after_the_first_message_is_the_last_event(self) -> None:
        error = errors.ModelNotReady("gone")
        async with stack(stream=lambda r, c: two_then(error, r, c)) as s:
            response = await soon(s.client.post(STREAM, json=BODY))
        assert response.status_code == 200
        kind, data = events(response.text)[-1].split("\n")
        assert kind == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"]["code"] == 503

    async def test_an_error_before_the_first_message_is_a_status(self) -> None:
        async def refused(request: Any, context: Any) -> AsyncIterator[Any]:
            raise errors.Overloaded("full", retry_after_s=4.0)
            yield

        async with stack(stream=refused) as s:
            response = await soon(s.client.post(STREAM, json=BODY))
        error_of(response, 429, "QUEUE_FULL")
        assert response.headers["retry-after"] == "4"

    async def test_silence_is_filled_with_comments(self) -> None:
        release = asyncio.Event()

        async def late(request: Any, context: Any) -> AsyncIterator[Any]:
            await release.wait()
            yield pb.ClassifyStreamResponse(index=7)

        async with (
            stack(stream=late, ping_interval_s=0.02) as s,
            s.client.stream("POST", STREAM, json=BODY) as response,
        ):
            lines = response.aiter_lines()
            assert await soon(anext(lines)) == ": ping"
            release.set()
            async with asyncio.timeout(SOON_S):
                rest = [line async for line in lines]
        assert (
            json.loads(next(line for line in rest if line.startswith("data: "))[6:])["index"] == 7
        )
