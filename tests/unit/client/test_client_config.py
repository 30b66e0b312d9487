"""Addresses, environment, what gRPC may repeat, and where calls go."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from gristmill_client import AsyncClient, Overloaded, Unavailable, _config

from tests.unit.client.conftest import Twin
from tests.unit.client.fakes import (
    SOON_S,
    FakeClassifier,
    FakeGenerator,
    FakeHealth,
    cut,
    error_info,
    refuse,
    serving,
)


def test_argument_before_environment_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_REGISTRY", "there:1")
    monkeypatch.setenv("GRISTMILL_GENERATOR", "there:2")
    monkeypatch.setenv("GRISTMILL_TOKEN", "secret")
    config = _config.load(registry="here:1")
    assert config.registry == "here:1"
    assert config.generator == "there:2"
    assert config.classifier == "localhost:50052"
    assert config.metadata() == (("authorization", "Bearer secret"),)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("localhost:50052", "localhost:50052"),
        ("dns:///classifier:50052", "dns:///classifier:50052"),
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("localhost:1, 127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
    ],
)
def test_addresses_become_targets(address: str, target: str) -> None:
    assert _config.target(address) == target


@pytest.mark.parametrize("address", ["one:1,two:2", "10.0.0.1:1,[::1]:2", "10.0.0.1:1,"])
def test_several_names_are_refused_with_the_way_out(address: str) -> None:
    with pytest.raises(ValueError, match="dns:///name:port"):
        _config.target(address)


def test_only_unary_calls_that_may_be_repeated_are_repeated() -> None:
    config = json.loads(_config.service_config(several=False))
    names = {(n["service"], n["method"]) for m in config["methodConfig"] for n in m["name"]}
    methods = {method for _, method in names}
    assert {"Classify", "GetModel", "CountTokens", "CreateModelVersion"} <= methods
    assert not methods & {"Generate", "GenerateStream", "ClassifyStream", "Watch", "UploadArtifact"}
    for method in config["methodConfig"]:
        assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert config["retryThrottling"] == {"maxTokens": 10, "tokenRatio": 0.1}


def test_reads_are_repeated_until_the_server_is_back(twin: Callable[..., Twin]) -> None:
    def away_twice(context: Any) -> None:
        if len(classifier.requests) < 3:
            cut(context)

    classifier = FakeClassifier(away_twice)
    with serving(classifier.register) as address:
        client = twin(classifier=address)
        assert client.run(client.client.classify("x"))[0].label == "positive"
    assert len(classifier.requests) == 3


def test_a_generation_is_never_repeated(twin: Callable[..., Twin]) -> None:
    generator = FakeGenerator(cut)
    with serving(generator.register) as address:
        client = twin(generator=address)
        with pytest.raises(Unavailable):
            client.run(client.client.generate("x"))
    assert len(generator.requests) == 1


def test_a_full_server_is_left_alone(twin: Callable[..., Twin]) -> None:
    def full(context: Any) -> None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
        refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", error_info("QUEUE_FULL"))

    classifier = FakeClassifier(full)
    with serving(classifier.register) as address:
        client = twin(classifier=address)
        with pytest.raises(Overloaded):
            client.run(client.client.classify("x"))
    assert len(classifier.requests) == 1


def test_every_call_has_a_deadline_and_the_token(twin: Callable[..., Twin]) -> None:
    classifier, generator = FakeClassifier(), FakeGenerator()
    with serving(classifier.register, generator.register) as address:
        client = twin(classifier=address, generator=address, token="secret")
        client.run(client.client.classify("x"))
        client.run(client.client.classify("x", timeout=5))
        client.run(client.client.generate("x"))
        client.collect(client.open(lambda: client.client.stream("x", timeout=7)))
    assert classifier.metadata[0]["authorization"] == "Bearer secret"
    left = classifier.time_left + generator.time_left
    for seconds, expected in zip(left, (30, 5, 120, 7), strict=True):
        assert seconds == pytest.approx(expected, abs=3)


def test_calls_go_round_robin_over_several_addresses(twin: Callable[..., Twin]) -> None:
    one, two = FakeClassifier(), FakeClassifier()
    with serving(one.register) as first, serving(two.register) as second:
        client = twin(classifier=f"{first},{second}")
        while not (one.requests and two.requests):
            client.run(client.client.classify("x"))


def test_an_address_that_is_not_serving_gets_no_calls(twin: Callable[..., Twin]) -> None:
    sick, well = FakeClassifier(), FakeClassifier()
    sick_health, well_health = FakeHealth(2), FakeHealth(1)
    with (
        serving(sick.register, sick_health.register) as first,
        serving(well.register, well_health.register) as second,
    ):
        client = twin(classifier=f"{first},{second}")
        for _ in range(10):
            client.run(client.client.classify("x"))
        assert sick_health.watched.wait(SOON_S)
        client.run(client.client.close())
    assert len(well.requests) == 10
    assert not sick.requests


def test_no_connection_is_opened_before_it_is_needed(twin: Callable[..., Twin]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as idle, serving(FakeClassifier().register) as busy:
        idle.settimeout(0)
        client = twin(classifier=busy, generator=f"127.0.0.1:{idle.getsockname()[1]}")
        client.run(client.client.classify("x"))
        with pytest.raises(BlockingIOError):
            idle.accept()


async def test_an_async_client_may_be_made_before_its_loop() -> None:
    with serving(FakeClassifier().register) as address:
        client = AsyncClient(classifier=address)
        async with client:
            assert (await client.classify("x"))[0].label == "positive"


def test_a_closed_client_says_so(twin: Callable[..., Twin]) -> None:
    client = twin()
    client.run(client.client.close())
    with pytest.raises(RuntimeError, match="closed"):
        client.run(client.client.classify("x"))


def test_health_is_asked_of_each_service(twin: Callable[..., Twin]) -> None:
    with serving(FakeHealth(1).register) as well, serving(FakeHealth(2).register) as sick:
        client = twin(classifier=well, registry=sick)
        assert client.run(client.client.health("classifier")) == "SERVING"
        assert client.run(client.client.health("registry")) == "NOT_SERVING"
