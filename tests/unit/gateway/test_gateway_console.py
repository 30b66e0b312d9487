"""The console as it is served, and the totals that its charts are drawn from."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError

from gateway.config import GatewayConfig
from gateway.console import METRICS
from gateway.docs import STATIC
from gateway.scrape import FRESH_S, MAX_BYTES, TIMEOUT_S, Scraper
from tests.harness import soon
from tests.unit.gateway.stack import error_of, stack
from tests.unit.gateway.test_gateway_auth import token_file

CONSOLE = STATIC / "console"
CLASSIFY = "/gristmill.classifier.v1.ClassifierService/Classify"
MAX_KB = 85
MAX_LINES = 250


class Instance:
    """An admin endpoint with counters of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.asked = 0
        labels = ["grpc_method", "grpc_status"]
        self.calls = Histogram(
            "grpc_server_call_duration_seconds",
            "Duration.",
            labels,
            buckets=(0.01, 0.1, 1.0),
            registry=self.registry,
        )
        self.queue = Gauge("gristmill_queue_items", "Items.", ["model"], registry=self.registry)
        self.rejected = Counter(
            "gristmill_rejected", "Refused.", ["model", "reason"], registry=self.registry
        )
        self.batch = Histogram(
            "gristmill_batch_size", "Size.", ["model"], buckets=(1, 2, 4), registry=self.registry
        )
        self.tokens = Counter(
            "gristmill_generator_tokens", "Tokens.", ["model", "kind"], registry=self.registry
        )

    def called(self, seconds: float, method: str = CLASSIFY, status: str = "OK") -> None:
        """Count a call."""
        self.calls.labels(method, status).observe(seconds)

    def text(self) -> bytes:
        """What it shows."""
        self.asked += 1
        return generate_latest(self.registry)


Body = Callable[[], bytes]


@asynccontextmanager
async def endpoint(body: Body, status: str = "200 OK", wait_s: float = 0.0) -> AsyncIterator[str]:
    """An HTTP server with one answer; gives its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(wait_s)
            head = f"HTTP/1.1 {status}\r\nconnection: close\r\nlocation: /elsewhere\r\n\r\n"
            writer.write(head.encode() + body())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # who asked has left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/metrics"
    finally:
        server.close()


async def totals(*urls: str) -> dict[str, Any]:
    """What a scraper finds of one service."""
    scraper = Scraper({"classifier": urls})
    try:
        found = await soon(scraper.totals())
        service: dict[str, Any] = found["services"]["classifier"]
        return service
    finally:
        await scraper.close()


class TestScraper:
    async def test_it_adds_up_models_and_instances(self) -> None:
        one, two = Instance(), Instance()
        for instance in (one, two):
            instance.called(0.05)
            instance.called(0.5, status="INTERNAL")
            instance.called(9.0, status="INVALID_ARGUMENT")
            instance.queue.labels("a").set(2)
            instance.queue.labels("b").set(1)
            instance.rejected.labels("a", "QUEUE_FULL").inc(4)
            instance.batch.labels("a").observe(3)
            instance.tokens.labels("a", "completion").inc(10)
            instance.tokens.labels("a", "prompt").inc(99)
        async with endpoint(one.text) as first, endpoint(two.text) as second:
            found = await totals(first, second)
        assert (found["up"], found["instances"], found["answered"]) == (True, 2, [0, 1])
        assert (found["requests_total"], found["errors_total"]) == (6, 2)
        assert (found["queue"], found["rejected_total"], found["tokens_total"]) == (6, 8, 20)
        latency = {"bounds": [0.01, 0.1, 1.0], "counts": [0, 2, 4, 6], "sum": pytest.approx(19.1)}
        assert found["latency"] == latency
        assert found["batch"] == {"bounds": [1, 2, 4], "counts": [0, 0, 2, 2], "sum": 6}

    async def test_health_checks_and_what_lasts_is_not_counted(self) -> None:
        instance = Instance()
        instance.called(0.05)
        instance.called(0.05, "/grpc.health.v1.Health/Check")
        instance.called(0.05, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        instance.called(600.0, "/gristmill.registry.v1.RegistryService/Watch")
        instance.called(600.0, "/gristmill.classifier.v1.ClassifierService/ClassifyBidi")
        async with endpoint(instance.text) as url:
            found = await totals(url)
        assert found["requests_total"] == 3
        assert found["latency"]["counts"] == [0, 1, 1, 1]

    async def test_one_that_is_down_leaves_the_others(self) -> None:
        instance = Instance()
        instance.called(0.05)
        async with endpoint(instance.text) as url:
            found = await totals("http://127.0.0.1:1/metrics", url)
            assert (found["up"], found["instances"], found["answered"]) == (True, 2, [1])
            assert found["requests_total"] == 1
            nothing = await totals("http://127.0.0.1:1/metrics")
        assert nothing == {"up": False, "instances": 1, "answered": []}

    @pytest.mark.parametrize(
        "body",
        [
            b"<!doctype html>",
            b"\xff\xfe",
            b'{"a": 1}',
            b'gristmill_batch_size_bucket{le="x"} 1\n',
            b"# a comment\n" * (MAX_BYTES // 12 + 1),
        ],
        ids=["html", "bytes", "json", "bound", "too large"],
    )
    async def test_what_is_no_prometheus_text_counts_as_down(self, body: bytes) -> None:
        async with endpoint(lambda: body) as url:
            assert not (await totals(url))["up"]

    async def test_no_redirect_is_followed_and_no_failure_read(self) -> None:
        for status in ("302 Found", "500 Internal Server Error"):
            async with endpoint(Instance().text, status) as url:
                assert not (await totals(url))["up"]

    async def test_a_slow_one_is_not_waited_for(self) -> None:
        async with endpoint(Instance().text, wait_s=60) as url:
            async with asyncio.timeout(TIMEOUT_S + 3):
                assert not (await totals(url))["up"]

    async def test_numbers_that_json_has_not_are_left_out(self) -> None:
        async with endpoint(lambda: b'gristmill_queue_items{model="a"} NaN\n') as url:
            assert (await totals(url))["queue"] == 0

    async def test_those_who_ask_together_share_an_answer(self) -> None:
        instance = Instance()
        async with endpoint(instance.text) as url:
            scraper = Scraper({"classifier": [url], "registry": []})
            first, second = await soon(asyncio.gather(scraper.totals(), scraper.totals()))
            third = await soon(scraper.totals())
            assert first is second is third
            assert instance.asked == 1
            assert list(first["services"]) == ["classifier"]
            await asyncio.sleep(FRESH_S + 0.05)
            assert (await soon(scraper.totals()))["time"] > first["time"]
            assert instance.asked == 2
            await scraper.close()

    @pytest.mark.parametrize("url", ["127.0.0.1:9151", "file:///etc/passwd", "http://"])
    def test_a_setting_that_is_no_url_stops_the_start(self, url: str) -> None:
        with pytest.raises(ValidationError, match="registry_metrics"):
            GatewayConfig(registry_metrics=f"http://127.0.0.1:9151/metrics, {url}")


class TestMetricsRoute:
    async def test_it_answers_with_the_totals(self) -> None:
        instance = Instance()
        instance.called(0.05)
        async with endpoint(instance.text) as url:
            async with stack(classifier_metrics=url) as s:
                response = await soon(s.client.get(METRICS))
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        found = response.json()
        assert found["time"] > 1e9
        assert found["services"]["classifier"]["requests_total"] == 1

    async def test_without_settings_there_is_nothing(self) -> None:
        async with stack() as s:
            assert (await soon(s.client.get(METRICS))).json()["services"] == {}
            error_of(await s.client.post(METRICS), 405, "METHOD_NOT_ALLOWED")

    async def test_it_needs_the_scope_read(self, tmp_path: Path) -> None:
        tokens = token_file(tmp_path, reader=("r" * 20, "read"), caller=("c" * 20, "infer"))
        async with stack(token_file=tokens) as s:
            error_of(await s.client.get(METRICS), 401, "CREDENTIALS_MISSING")
            caller = {"authorization": "Bearer " + "c" * 20}
            error_of(await s.client.get(METRICS, headers=caller), 403, "SCOPE_MISSING")
            reader = {"authorization": "Bearer " + "r" * 20}
            assert (await s.client.get(METRICS, headers=reader)).status_code == 200


async def assets(client: httpx.AsyncClient) -> dict[str, httpx.Response]:
    """The page and all that belongs to it, by path."""
    paths = ["/", *(f"/console/{f.name}" for f in CONSOLE.iterdir() if f.suffix != ".html")]
    return {path: await soon(client.get(path)) for path in paths}


class TestPage:
    async def test_it_is_served_without_a_token(self, tmp_path: Path) -> None:
        tokens = token_file(tmp_path, reader=("r" * 20, "read"))
        async with stack(token_file=tokens) as s:
            found = await assets(s.client)
            again = await s.client.get("/", headers={"if-none-match": found["/"].headers["etag"]})
            folder = await s.client.get("/console/")
        for path, response in found.items():
            assert response.status_code == 200, path
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
        assert again.status_code == 304
        assert folder.status_code == 404

    async def test_it_names_no_other_host_and_nothing_the_policy_refuses(self) -> None:
        async with stack() as s:
            found = await assets(s.client)
            page = found["/"].text
            named = set(re.findall(r'(?:src|href)="(/[^"]*)"', page))
            for text in (one.text for one in found.values()):
                named |= set(re.findall(r'from "(/[^"]+)"', text))
                named |= {f"/console/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
            for path in named:
                assert (await s.client.get(path)).status_code == 200, path
            assert 'href="/"' in (await s.client.get("/docs")).text
        assert "/docs" in named
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", page)
        for path, response in found.items():
            text = response.text.replace("http://www.w3.org/2000/svg", "")  # a name, not a link
            text = text.replace("http://127.0.0.1:${PORTS[name]}", "")  # what a setting looks like
            assert not re.search(r"https?://|[\"'(]//\w", text), path
            assert "innerHTML" not in text, path
            assert "insertAdjacentHTML" not in text, path

    def test_it_is_small(self) -> None:
        files = [file for file in CONSOLE.iterdir() if file.is_file()]
        assert sum(file.stat().st_size for file in files) < MAX_KB * 1000
        assert all(file.read_text().count("\n") <= MAX_LINES for file in files)
