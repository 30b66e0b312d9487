"""The cache as it is configured, and what it refuses to start with."""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from services.classifier.config import ClassifierConfig
from services.inference import cache
from services.inference.cache.redis import PREFIX, RedisCache
from services.inference.cache.sealing import Sealer
from services.inference.cache.sharing import Settle
from services.inference.items import TextItem
from services.inference.scoring import Outputs
from services.runtime.config import load
from services.runtime.deadline import Deadline
from tests.redis import redis

URL = "redis://127.0.0.1:1/0"


@pytest.fixture
def salt(tmp_path: Path) -> Path:
    file = tmp_path / "salt"
    file.write_bytes(b"sixteen bytes ok\n")
    return file


def test_it_is_in_memory_unless_told_otherwise() -> None:
    made = cache.build(ClassifierConfig(cache_bytes=2**20))
    assert made is not None
    assert (made.remote, made.memory.most_bytes) == (None, 2**20)


def test_it_can_be_off() -> None:
    assert cache.build(ClassifierConfig(cache="off")) is None


def test_without_a_salt_each_process_has_its_own(salt: Path) -> None:
    def key(**settings: object) -> bytes | None:
        made = cache.build(ClassifierConfig(**settings))
        assert made is not None
        return made.keys.of("me", "digest", [TextItem("x")])[0]

    assert key() != key()
    assert key(cache_salt_file=salt) == key(cache_salt_file=salt)


async def test_redis_is_behind_memory(salt: Path, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    made = cache.build(
        ClassifierConfig(
            cache="redis",
            cache_redis_url=URL,
            cache_salt_file=salt,
            cache_redis_password_file=password,
            cache_redis_timeout_ms=5,
            cache_ttl_s=7,
        )
    )
    assert made is not None
    assert isinstance(made.remote, RedisCache)
    assert (made.remote._timeout_s, made.remote._ttl_ms) == (0.005, 7000)
    asked = made.remote._client.connection_pool.connection_kwargs
    assert (asked["port"], asked["password"]) == (1, "open sesame")
    await made.close()


async def test_replicas_that_are_configured_alike_share(salt: Path, tmp_path: Path) -> None:
    other_salt = tmp_path / "other"
    other_salt.write_bytes(b"another sixteen bytes")
    value = cache.Value.of(Outputs({"p": np.ones((1, 2), np.float32)}), 0)
    deadline = Deadline.after(60.0)
    told: list[tuple[int, object]] = []

    async def ask(made: cache.Cache) -> bool:
        """Whether it had to be computed."""
        computed = False

        async def compute(indices: Sequence[int], settle: Settle) -> None:
            nonlocal computed
            computed = settle(0, value)

        responses = made.of("m", "digest")
        found = await responses.look_up("me", [TextItem("x")])
        if found.missing:
            order = (5, deadline.at)
            await responses.resolve(found, order, deadline, compute, lambda *one: told.append(one))
        return computed

    with redis() as server:

        def replica(file: Path) -> cache.Cache:
            settings = {"cache_redis_url": server.url, "cache_redis_timeout_ms": 5000}
            made = cache.build(ClassifierConfig(cache="redis", cache_salt_file=file, **settings))
            assert made is not None
            return made

        one, other, stranger = replica(salt), replica(salt), replica(other_salt)
        assert await ask(one)
        assert not await ask(one), "memory has it"
        await one.close()
        assert not await ask(other), "Redis has it"
        assert len(told) == 1
        assert await ask(stranger)
        assert not await ask(other), "memory has it here too"
        for made in (other, stranger):
            await made.close()
        names = server.keys()
        assert len(names) == 2
        with server.client() as client:
            sealed = {name.removeprefix(PREFIX): client.get(name) for name in names}
        for file in (salt, other_salt):
            assert len([key for key in sealed if opens(file, key, sealed[key])]) == 1
    assert len(told) == 1


def opens(salt: Path, key: bytes, data: bytes) -> bool:
    """Whether a value was sealed under what is in a file."""
    try:
        Sealer(salt.read_bytes().strip()).open(key, data)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cache_salt_file": "salt"}, "cache redis needs cache_redis_url"),
        ({"cache_salt_file": "salt", "cache_redis_url": "127.0.0.1"}, "rediss:// or unix://"),
        ({"cache_redis_url": URL}, "cache redis needs cache_salt_file"),
    ],
)
def test_redis_needs_a_server_and_a_salt(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClassifierConfig(cache="redis", **settings)


def test_what_is_missing_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(ClassifierConfig, ["--cache=redis"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cache redis needs cache_redis_url" in said


def test_a_url_with_a_password_is_not_shown() -> None:
    config = ClassifierConfig(cache_redis_url="redis://:open-sesame@127.0.0.1:1/0")
    assert "open-sesame" not in repr(config)


@pytest.mark.parametrize("name", ["cache_salt_file", "cache_redis_password_file"])
def test_a_file_that_cannot_be_read_is_said(salt: Path, tmp_path: Path, name: str) -> None:
    files = {"cache_salt_file": salt, name: tmp_path / "nowhere"}
    with pytest.raises(ValueError, match="nowhere cannot be read: No such file"):
        cache.build(ClassifierConfig(cache="redis", cache_redis_url=URL, **files))


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_a_salt_that_can_be_guessed_is_refused(salt: Path, kind: str) -> None:
    salt.write_text("fifteen letters\n\n")
    with pytest.raises(ValueError, match="cache_salt_file must hold at least 16 bytes"):
        cache.build(ClassifierConfig(cache=kind, cache_redis_url=URL, cache_salt_file=salt))


def test_only_who_asks_for_redis_needs_its_package() -> None:
    """Images without it have these modules too."""
    for file in Path(cache.__file__).parent.glob("*.py"):
        body = ast.parse(file.read_text()).body
        plain = [one for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
        names = [getattr(one, "module", None) or one.names[0].name for one in plain]
        assert not [name for name in names if name.partition(".")[0] == "redis"], file.name


def test_without_the_package_it_says_so(salt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ValueError, match="needs the package redis"):
        cache.build(ClassifierConfig(cache="redis", cache_redis_url=URL, cache_salt_file=salt))
