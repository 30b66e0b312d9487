"""Settings: flag over environment over file over default, and an exit that says what is wrong."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from services.runtime.config import ServerConfig, is_loopback, load


class Config(ServerConfig):
    """A service's settings, with one of its own."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_RUNTIME_TEST_")

    max_queue_items: int = Field(default=10, ge=1)
    """How many may wait."""


Write = Callable[[str], str]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine sets is out of the way."""
    for name in os.environ:
        if name.startswith("GRISTMILL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Sets a variable of the service."""
    return lambda name, value: monkeypatch.setenv(f"GRISTMILL_RUNTIME_TEST_{name}", value)


@pytest.fixture
def file(tmp_path: Path) -> Write:
    """Writes a configuration file and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_the_defaults_are_valid_and_safe() -> None:
    config = load(Config, [])
    assert is_loopback(config.host)
    assert is_loopback(config.admin_host)
    assert not config.insecure
    assert (config.transport, config.port, config.max_queue_items) == ("auto", 0, 10)


@pytest.mark.parametrize("flag", [None, "flag"])
@pytest.mark.parametrize("variable", [None, "environment"])
@pytest.mark.parametrize("written", [None, "file"])
def test_flag_then_environment_then_file_then_default(
    env: Callable[[str, str], None],
    file: Write,
    flag: str | None,
    variable: str | None,
    written: str | None,
) -> None:
    seconds = {"flag": 4.0, "environment": 3.0, "file": 2.0, "default": 30.0}
    argv = []
    if written:
        argv += ["--config", file(f"default_timeout_s: {seconds['file']}\nport: 7\n")]
    if variable:
        env("DEFAULT_TIMEOUT_S", str(seconds["environment"]))
    if flag:
        argv += ["--default-timeout-s", str(seconds["flag"])]
    config = load(Config, argv)
    assert config.default_timeout_s == seconds[flag or variable or written or "default"]
    assert config.port == (7 if written else 0)


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_a_file_is_named_by_flag(file: Write, form: str) -> None:
    argv = form.format(file("max_queue_items: 3\n")).split()
    assert load(Config, argv).max_queue_items == 3


def test_a_file_is_named_by_environment_and_the_flag_wins(
    env: Callable[[str, str], None], file: Write, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("max_queue_items: 4\n")
    env("CONFIG", str(other))
    assert load(Config, []).max_queue_items == 4
    assert load(Config, ["--config", file("max_queue_items: 3\n")]).max_queue_items == 3
    assert load(Config, []).max_queue_items == 4


def test_reading_leaves_the_environment_alone(file: Write) -> None:
    """What a process was told is not told to the processes that it starts."""
    before = dict(os.environ)
    load(Config, ["--config", file("max_queue_items: 3\n")])
    assert dict(os.environ) == before
    assert load(Config, []).max_queue_items == 10


def test_flags_without_a_value_are_switches() -> None:
    assert load(Config, ["--insecure", "--host", "0.0.0.0"]).insecure
    assert not load(Config, ["--no-insecure"]).insecure


def stopped(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line with which a start is refused."""
    with pytest.raises(SystemExit) as refused:
        load(Config, argv)
    assert refused.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_an_unknown_environment_key_stops_the_start(
    capsys: pytest.CaptureFixture[str], env: Callable[[str, str], None]
) -> None:
    env("MAX_QUEUE_ITEM", "3")
    assert "GRISTMILL_RUNTIME_TEST_MAX_QUEUE_ITEM" in stopped(capsys, [])


def test_a_part_of_a_setting_that_has_no_parts_stops_the_start(
    capsys: pytest.CaptureFixture[str], env: Callable[[str, str], None]
) -> None:
    env("PORT__X", "3")
    assert "GRISTMILL_RUNTIME_TEST_PORT__X" in stopped(capsys, [])


def test_a_setting_of_another_service_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_OTHER_MAX_QUEUE_ITEM", "3")
    monkeypatch.setenv("MAX_QUEUE_ITEMS", "3")
    monkeypatch.setenv("PORT", "9")
    assert load(Config, []).max_queue_items == 10


def test_an_unknown_key_in_the_file_stops_the_start(
    capsys: pytest.CaptureFixture[str], file: Write
) -> None:
    assert "max_queue_item" in stopped(capsys, ["--config", file("max_queue_item: 3\n")])


@pytest.mark.parametrize("flag", ["--max-queue-item=3", "--nope", "--max-queue-itemss"])
def test_an_unknown_flag_stops_the_start(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert flag.partition("=")[0] in stopped(capsys, [flag])


def test_a_flag_is_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    """Else a new setting would change what an old command line means."""
    assert "--max-queue" in stopped(capsys, ["--max-queue", "3"])


def test_a_word_that_belongs_to_no_flag_stops_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "stray" in stopped(capsys, ["stray"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port: [", "config.yaml"),
        ("- port", "config.yaml"),
        ("port: many", "port"),
        ("port: 70000", "port"),
        ("max_queue_items: 0", "max_queue_items"),
        ("transport: quic", "transport"),
        ("default_timeout_s: 0", "default_timeout_s"),
        ("port: \x01", "config.yaml"),
    ],
)
def test_a_file_that_is_wrong_stops_the_start(
    capsys: pytest.CaptureFixture[str], file: Write, text: str, says: str
) -> None:
    assert says in stopped(capsys, ["--config", file(text)])


def test_an_empty_file_sets_nothing(file: Write) -> None:
    assert load(Config, ["--config", file("")]).max_queue_items == 10


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_file_that_is_not_there_stops_the_start(
    capsys: pytest.CaptureFixture[str],
    env: Callable[[str, str], None],
    tmp_path: Path,
    how: str,
) -> None:
    gone = str(tmp_path / "gone.yaml")
    if how == "environment":
        env("CONFIG", gone)
    assert "gone.yaml" in stopped(capsys, ["--config", gone] if how == "flag" else [])


def test_a_wrong_value_is_named_with_its_setting(
    capsys: pytest.CaptureFixture[str], env: Callable[[str, str], None]
) -> None:
    assert "port" in stopped(capsys, ["--port", "many"])
    env("KEEPALIVE_TIME_S", "-1")
    assert "keepalive_time_s" in stopped(capsys, [])


def test_several_problems_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(Config, ["--port", "many", "--max-queue-items", "0"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert {"port", "max_queue_items"} == {
        word for line in lines for word in ("port", "max_queue_items") if word in line
    }


LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "unix:/tmp/x.sock"]
BEYOND = ["0.0.0.0", "::", "[::]", "10.0.0.1", "192.168.1.7", "example.com", "", "localhost.evil"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_needs_no_guard(host: str) -> None:
    assert is_loopback(host)
    assert Config(host=host).host == host


@pytest.mark.parametrize("host", BEYOND)
def test_beyond_loopback_needs_tls_tokens_or_an_explicit_word(
    capsys: pytest.CaptureFixture[str], host: str
) -> None:
    assert not is_loopback(host)
    assert "insecure" in stopped(capsys, [f"--host={host}"])
    assert Config(host=host, insecure=True)
    assert Config(host=host, token_file=Path("tokens.yaml"))
    assert Config(host=host, tls_certificate=Path("c.pem"), tls_key=Path("k.pem"))


@pytest.mark.parametrize(
    "given",
    [
        {"tls_certificate": Path("c.pem")},
        {"tls_key": Path("k.pem")},
        {"tls_client_ca": Path("ca.pem")},
        {"tls_client_ca": Path("ca.pem"), "tls_key": Path("k.pem")},
    ],
)
def test_half_of_a_tls_setting_is_refused(given: dict[str, Path]) -> None:
    with pytest.raises(ValidationError, match="tls_"):
        Config(**given)  # type: ignore[arg-type]  # one name each


def test_a_configuration_does_not_change() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.port = 1  # type: ignore[misc]  # it is the point
    with pytest.raises(ValidationError, match="extra"):
        Config(nope=1)  # type: ignore[call-arg]  # it is the point


UNITS = re.compile(r"_(s|ms|us|bytes|mb|kib|mib|gib)$")
A_TIME_OR_SIZE = re.compile(
    r"time|timeout|interval|age|grace|delay|duration|period|size|length|bytes|second|ttl", re.I
)


def test_a_time_or_a_size_has_its_unit_in_its_name() -> None:
    for name, one in ServerConfig.model_fields.items():
        if one.annotation in (int, float) and A_TIME_OR_SIZE.search(name):
            assert UNITS.search(name), f"{name} is a time or a size in what?"
    assert UNITS.search("keepalive_time_s")
    assert not UNITS.search("keepalive_time")


def test_every_setting_is_explained_and_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as helped:
        load(Config, ["--help"])
    assert helped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, one in Config.model_fields.items():
        assert one.description, name
        assert f"--{name.replace('_', '-')}" in text
    assert "How many may wait." in text


def test_a_free_port_is_really_free() -> None:
    """0 is the default, so two servers on one machine do not collide unasked."""
    assert Config().port == 0
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        assert listening.getsockname()[1] != 0
