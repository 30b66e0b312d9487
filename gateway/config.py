"""The settings of the gateway."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.config import ServerConfig


class GatewayConfig(ServerConfig):
    """What the gateway can be told; those of `ServerConfig` about gRPC connections do nothing."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_GATEWAY_")

    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    admin_port: int = Field(default=9154, ge=-1, le=65535)
    """Port for /metrics (HTTP); 0 takes a free one, -1 opens none."""

    registry: str = Field(default="localhost:50051", min_length=1)
    """Addresses of the registry, host:port, comma separated."""
    classifier: str = Field(default="localhost:50052", min_length=1)
    """Addresses of the classifier, host:port, comma separated."""
    generator: str = Field(default="localhost:50053", min_length=1)
    """Addresses of the generator, host:port, comma separated."""
    upstream_ca: Path | None = None
    """PEM certificates that sign the services; set, they are called over TLS."""
    upstream_token_file: Path | None = None
    """File with the gateway's own token, whose scopes include `delegate`; unset, callers' tokens
    are passed on."""
    upstream_token: SecretStr = SecretStr("")
    """The same as a value, meant for the environment: a flag can be seen by others."""

    max_body_bytes: int = Field(default=32 * 2**20, ge=1024, le=2**31 - 1)
    """Largest request body taken."""
    max_buffered_bytes: int = Field(default=256 * 2**20, ge=1024)
    """Request bodies held at once, over all requests; more are refused with QUEUE_FULL."""
    compressed_bodies: bool = False
    """Whether bodies in gzip and deflate are taken; max_body_bytes holds for them as sent and as
    inflated together, and beyond 1 MiB they may inflate to 100 times themselves."""
    max_concurrent_requests: int = Field(default=2000, ge=1)
    """Requests in hand at once; more are refused with QUEUE_FULL."""
    max_json_depth: int = Field(default=100, ge=1, le=200)
    """Deepest nesting of arrays and objects taken."""
    default_stream_timeout_s: float = Field(default=3600.0, gt=0)
    """Deadline of a stream that brings none."""
    ping_interval_s: float = Field(default=15.0, gt=0)
    """A stream silent this long gets a comment, so that proxies keep it open."""
    probe_timeout_s: float = Field(default=2.0, gt=0)
    """Time that a service has to answer a readiness check."""

    rate_limit_per_s: float = Field(default=0.0, ge=0)
    """Requests a second that one identity may make, over all routes; without tokens, one client
    address. More are refused with QUOTA_EXCEEDED; 0: no limit."""
    rate_limit_burst: float = Field(default=0.0, ge=0)
    """How many it may make at once; 0: one second's worth."""
    rate_limit_redis_url: str = Field(default="", repr=False)
    """redis://host:6379/0, rediss:// or unix://: the limits are shared by all gateways that name
    the same. Without it each gateway limits by itself, as it does while Redis does not answer."""
    rate_limit_redis_timeout_ms: float = Field(default=50.0, gt=0, le=10_000)
    """Time that Redis has to answer."""

    allowed_origins: str = ""
    """Origins of other sites whose pages may call, such as https://ui.example, comma separated."""
    allowed_hosts: str = ""
    """Names by which this gateway is called, comma separated. Without a token_file any other name
    than localhost and IP addresses is refused (DNS rebinding); set, they are checked always."""

    registry_metrics: str = ""
    """Where the console's charts of the registry come from: its admin endpoints, such as
    http://127.0.0.1:9151/metrics, comma separated. Empty: no charts of it."""
    classifier_metrics: str = ""
    """The same for the classifier, such as http://127.0.0.1:9152/metrics."""
    generator_metrics: str = ""
    """The same for the generator, such as http://127.0.0.1:9153/metrics."""

    @model_validator(mode="after")
    def _check_metrics(self) -> "GatewayConfig":
        for name, urls in self.metrics().items():
            for parts in map(urlsplit, urls):
                if parts.scheme not in ("http", "https") or not parts.hostname:
                    raise ValueError(f"{name}_metrics: URLs such as http://127.0.0.1:9151/metrics")
        return self

    @model_validator(mode="after")
    def _check_gateway(self) -> "GatewayConfig":
        if self.upstream_token_file and self.upstream_token.get_secret_value():
            raise ValueError("upstream_token and upstream_token_file exclude each other")
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError("max_buffered_bytes is less than max_body_bytes")
        url = self.rate_limit_redis_url
        if url and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("rate_limit_redis_url: redis://, rediss:// or unix://")
        return self

    def metrics(self) -> dict[str, tuple[str, ...]]:
        """The admin endpoints of each service."""
        return {
            "registry": listed(self.registry_metrics),
            "classifier": listed(self.classifier_metrics),
            "generator": listed(self.generator_metrics),
        }

    def own_token(self) -> str:
        """The gateway's own token, or "" where it has none; ValueError for an unusable one."""
        token = self.upstream_token.get_secret_value()
        if self.upstream_token_file:
            try:
                token = self.upstream_token_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ValueError(f"upstream_token_file: {error.strerror}") from error
            if not token:
                raise ValueError("upstream_token_file is empty")
        if not token.isascii() or (token and not token.isprintable()):
            raise ValueError("the upstream token has characters that no header can carry")
        return token


def listed(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated setting."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
