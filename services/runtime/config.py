"""The settings that every server has, and how they are read: flag, environment, file, default.

Each field is also a flag (`--max-message-bytes`) and an environment variable
(`GRISTMILL_<SERVICE>_MAX_MESSAGE_BYTES`). A key that nobody knows stops the start.
"""

import ipaddress
import os
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

ConfigT = TypeVar("ConfigT", bound="ServerConfig")


class ServerConfig(BaseSettings):
    """What every server can be told."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        protected_namespaces=(),
    )

    config: Path | None = None
    """A YAML file with settings; flags and environment win over it."""

    host: str = "127.0.0.1"
    """Address to listen on. Other than loopback needs TLS, a token file or --insecure."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    insecure: bool = False
    """Listen beyond loopback without TLS and without tokens: anyone may call."""
    transport: Literal["auto", "grpcio", "native"] = "auto"
    """HTTP/2 server; auto takes native where it is installed and can do what is configured."""

    tls_certificate: Path | None = None
    """PEM certificate chain of this server."""
    tls_key: Path | None = None
    """PEM private key of this server."""
    tls_client_ca: Path | None = None
    """PEM certificates that sign clients; set, clients must show one (mutual TLS)."""
    token_file: Path | None = None
    """YAML with hashed tokens and their scopes; set, every call but health needs a token."""

    admin_host: str = "127.0.0.1"
    """Address of the admin port."""
    admin_port: int = Field(default=0, ge=-1, le=65535)
    """Port for /metrics (HTTP); 0 takes a free one, -1 opens none."""
    channelz_port: int = Field(default=-1, ge=-1, le=65535)
    """Port of the admin address for grpc.channelz; 0 takes a free one, -1 opens none."""

    max_message_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**31 - 1)
    """Largest message taken or sent."""
    max_concurrent_streams: int = Field(default=1000, ge=1)
    """Most calls at once on one connection."""
    keepalive_time_s: float = Field(default=60.0, gt=0)
    """Ping a silent connection this often."""
    keepalive_timeout_s: float = Field(default=20.0, gt=0)
    """Close a connection whose ping is unanswered this long."""
    min_ping_interval_s: float = Field(default=5.0, ge=0)
    """Clients that ping oftener than this are cut off (grpcio only)."""
    max_connection_age_s: float = Field(default=0.0, ge=0)
    """Ask clients to reconnect after this long, so that they rebalance; 0: never (grpcio only)."""
    max_connection_age_grace_s: float = Field(default=60.0, ge=0)
    """Time for calls on a connection that has reached its age (grpcio only)."""

    default_timeout_s: float = Field(default=30.0, gt=0)
    """Deadline of a call that brings none."""
    drain_grace_s: float = Field(default=30.0, ge=0)
    """Time for work in hand after SIGTERM."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_format: Literal["json", "text"] = "json"
    """json for machines, text for a terminal."""
    log_sample_every: int = Field(default=100, ge=0)
    """Log every n-th successful call; 0: none. Failed calls are always logged."""
    otlp_endpoint: str = ""
    """OTLP/gRPC endpoint for traces, such as http://localhost:4317; empty: no export."""
    trace_sample_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of calls traced where the caller's own trace does not decide."""

    @model_validator(mode="after")
    def _check(self) -> "ServerConfig":
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        guarded = self.tls_certificate or self.token_file or self.insecure
        if not is_loopback(self.host) and not guarded:
            raise ValueError(
                f"host {self.host} is not loopback: give TLS, a token_file, or --insecure"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = _file_in({**env_settings(), **init_settings()})
        try:
            file = YamlConfigSettingsSource(settings_cls, yaml_file=path)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise SettingsError(f"configuration file {path}: {error}") from error
        return init_settings, env_settings, file


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load(cls: type[ConfigT], argv: list[str]) -> ConfigT:
    """The configuration of a process, or an exit with status 2 that says what is wrong."""
    prefix = cls.model_config.get("env_prefix", "")
    _refuse_unknown_environment(cls, prefix)
    # The file is read before the flags are, and its own flag goes before its variable.
    given: dict[str, Any] = {"config": file} if (file := _flag(argv, "--config")) else {}
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            cls, cli_parse_args=argv, cli_prog_name=f"python -m {cls.__module__.rsplit('.', 1)[0]}"
        )
        return cls(_cli_settings_source=source, **given)  # type: ignore[call-arg]  # pydantic's own
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']}"
            for problem in error.errors()
        ]
        _fail("\n".join(lines))
    except (SettingsError, OSError) as error:
        _fail(" ".join(str(error).split()))


def _refuse_unknown_environment(cls: type[ServerConfig], prefix: str) -> None:
    known = {f"{prefix}{name}".upper() for name in cls.model_fields}
    for name in os.environ:
        if prefix and name.startswith(prefix) and name.upper() not in known:
            _fail(f"environment variable {name} is not a setting")


def _flag(argv: list[str], name: str) -> str | None:
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _file_in(environment: dict[str, object]) -> Path | None:
    value = environment.get("config")
    if value is None:
        return None
    path = Path(str(value))
    if not path.is_file():
        raise SettingsError(f"configuration file {path} does not exist")
    return path


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"configuration: {message}\n")
    raise SystemExit(2)
