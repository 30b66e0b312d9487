"""Both clients behind one face, so that a test says once what must hold of the two."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gristmill_client import AsyncClient, Client

from tests.unit.client.fake_bidi import FakeBidi
from tests.unit.client.fakes import serving
from tests.unit.registry.parts import weights
from tests.unit.registry.wire import RegistryProcess


@dataclass
class Twin:
    """A client, and how to wait for what it gives."""

    client: Any
    runner: asyncio.Runner | None

    def run(self, value: Any) -> Any:
        """The result of a call."""
        return self.runner.run(value) if self.runner and asyncio.iscoroutine(value) else value

    def open(self, begin: Callable[[], Any]) -> Any:
        """A stream, begun where its kind needs to be begun."""
        if self.runner is None:
            return begin()

        async def begin_in_loop() -> Any:
            return begin()

        return self.runner.run(begin_in_loop())

    def close(self, stream: Any) -> None:
        self.run(stream.close())

    def collect(self, stream: Any, limit: int | None = None) -> list[Any]:
        """What a stream gives, all of it or the first few, without closing it."""
        if self.runner is None:
            return [value for _, value in zip(_upto(limit), stream, strict=False)]
        return self.runner.run(_collect(stream, limit))

    def next(self, stream: Any) -> Any:
        return next(stream) if self.runner is None else self.runner.run(anext(stream))


Begin = Callable[..., tuple[Twin, Any]]


def _upto(limit: int | None) -> Iterator[int]:
    return iter(range(limit if limit is not None else 1_000_000))


async def _collect(stream: Any, limit: int | None) -> list[Any]:
    values: list[Any] = []
    while limit is None or len(values) < limit:
        try:
            values.append(await anext(stream))
        except StopAsyncIteration:
            break
    return values


@pytest.fixture(params=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Iterator[Callable[..., Twin]]:
    """Makes a client of either kind: `twin(classifier=address)`."""
    made: list[Twin] = []

    def make(**arguments: Any) -> Twin:
        if request.param == "sync":
            made.append(Twin(Client(**arguments), None))
        else:
            made.append(Twin(AsyncClient(**arguments), asyncio.Runner()))
        return made[-1]

    yield make
    for each in made:
        each.run(each.client.close())
        if each.runner is not None:
            each.runner.close()


@pytest.fixture
def begin(twin: Callable[..., Twin]) -> Iterator[Begin]:
    """A stream of either kind to a server: `begin(fake, "sentiment", top_k=2)`."""
    servers: list[Any] = []

    def make(fake: FakeBidi, *arguments: Any, client: Any = None, **options: Any) -> Any:
        servers.append(serving(fake.register))
        made = twin(classifier=servers[-1].__enter__(), **(client or {}))
        return made, made.open(lambda: made.client.classify_bidi(*arguments, **options))

    yield make
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's GRISTMILL_* decides what a test sees."""
    for name in [name for name in os.environ if name.startswith("GRISTMILL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A real registry that checks files and runs no model; each test has models of its own."""
    made = RegistryProcess(tmp_path_factory.mktemp("registry"), "--worker=headers")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def named(request: pytest.FixtureRequest) -> str:
    """A model's name that no other test uses."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:100]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder that says nothing of itself: two numbers in, two out."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(weights(b"bare"))
    return folder
