"""The response cache: equal questions of a tenant to a model are answered without the model.

`build` makes it as a service is configured: in memory, or in memory before Redis. Knows no wire.
"""

import secrets
from pathlib import Path
from typing import Literal, Protocol

from services.inference.cache.keys import LEAST_SECRET_BYTES, Keys
from services.inference.cache.memory import Memory
from services.inference.cache.responses import Cache, Found, Responses
from services.inference.cache.values import Value

__all__ = ["Cache", "Found", "Responses", "Settings", "Value", "build"]


class Settings(Protocol):
    """What a service is told of its cache."""

    @property
    def cache(self) -> Literal["memory", "redis", "off"]:
        """Where answers are kept."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Of memory."""
        ...

    @property
    def cache_salt_file(self) -> Path | None:
        """What keys are salted with."""
        ...

    @property
    def cache_ttl_s(self) -> float:
        """How long Redis keeps an answer."""
        ...

    @property
    def cache_redis_url(self) -> str:
        """Of the server."""
        ...

    @property
    def cache_redis_password_file(self) -> Path | None:
        """Of the server."""
        ...

    @property
    def cache_redis_timeout_ms(self) -> float:
        """How long a call waits for the server."""
        ...


def build(settings: Settings) -> Cache | None:
    """The cache of a process, on its loop; None: off. ValueError says what cannot be."""
    if settings.cache == "off":
        return None
    secret = _secret(settings)
    memory = Memory(settings.cache_bytes)
    if settings.cache == "memory":
        return Cache(Keys(secret), memory)
    try:
        from services.inference.cache.redis import RedisCache, connect
        from services.inference.cache.sealing import Sealer

        file = settings.cache_redis_password_file
        client = connect(settings.cache_redis_url, _read(file).decode() if file else None)
    except ImportError as error:
        raise ValueError("cache redis needs the package redis") from error
    timeout_s = settings.cache_redis_timeout_ms / 1000
    remote = RedisCache(client, Sealer(secret), timeout_s, settings.cache_ttl_s)
    return Cache(Keys(secret), memory, remote)


def _secret(settings: Settings) -> bytes:
    if settings.cache_salt_file is None:
        if settings.cache == "redis":
            raise ValueError("cache redis needs cache_salt_file, the same for all replicas")
        return secrets.token_bytes(32)
    secret = _read(settings.cache_salt_file)
    if len(secret) < LEAST_SECRET_BYTES:
        raise ValueError(f"cache_salt_file must hold at least {LEAST_SECRET_BYTES} bytes")
    return secret


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error
