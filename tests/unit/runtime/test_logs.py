"""Log lines: whatever a caller sends stays inside one line, escaped; tokens are never in them."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from services.runtime import errors, logs
from services.runtime.auth import token_hash
from tests.harness import CLASSIFY, RawHttp2, Scripted, failure, lines_of, metadata, request, serve

Style = Literal["json", "text"]
TOKEN = "t0ken-of-ann-which-nobody-may-read"

# Each moves a terminal's cursor, starts a line, or reorders what stands beside it.
HOSTILE = {
    "newline": "a\nlevel=error forged",
    "carriage return": "a\rforged",
    "colour": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "line separator": "a\u2028forged",
    "paragraph separator": "a\u2029forged",
    "next line": "a\x85forged",
    "C1 control": "a\x9b31mred",
    "bidi override": "a\u202eforged",
    "bidi isolate": "a\u2066forged\u2069",
    "delete": "a\x7fb",
    "null": "a\0b",
    "zero width": "a\u200bb",
    "byte order mark": "\ufeffa",
    "surrogate": "a\ud800b",
    "tag": "a\U000e0041b",
}
UNSAFE = {char for text in HOSTILE.values() for char in text if not char.isprintable()} - {"\n"}


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give the process its logging back."""
    root = logging.getLogger()
    before, level, ours = list(root.handlers), root.level, structlog.get_config()
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.configure(**ours)


def assert_clean(stderr: str) -> None:
    """No character of it moves a cursor or ends a line but the newlines between the lines."""
    assert not UNSAFE & set(stderr), stderr
    assert list(lines_of(stderr)) == [line for line in stderr.split("\n") if line]


def read(stderr: str) -> list[dict[str, Any]]:
    """The lines as JSON objects."""
    assert_clean(stderr)
    return [json.loads(line) for line in stderr.splitlines()]


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_stays_in_its_field(
    capsys: pytest.CaptureFixture[str], style: Style, text: str
) -> None:
    logs.configure("harness", "info", style)
    logs.get_logger().info(text, request_id=text, error=text, parts=[text, {"k": text}])
    logging.getLogger("a.library").warning("it said %s", text)
    stderr = capsys.readouterr().err
    assert_clean(stderr)
    assert len(stderr.splitlines()) == 2


def test_json_gives_the_text_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("harness", "info", "json")
    for text in HOSTILE.values():
        logs.get_logger().info("call", error=text)
    assert [line["error"] for line in read(capsys.readouterr().err)] == list(HOSTILE.values())


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_in_an_exception_stays_there(
    capsys: pytest.CaptureFixture[str], style: Style, text: str
) -> None:
    logs.configure("harness", "info", style)
    try:
        raise ValueError(text)
    except ValueError as error:
        logs.get_logger().error("call failed", exc_info=error)
        logging.getLogger("a.library").exception("it failed")
    stderr = capsys.readouterr().err
    assert_clean(stderr)
    assert "ValueError" in stderr
    # A line of the traceback, whatever it says, is never taken for a line of the log.
    assert sum(not line.startswith(" ") for line in stderr.splitlines()) == 2
    if style == "json":
        assert len(stderr.splitlines()) == 2
        assert all("Traceback" in line["exception"] for line in read(stderr))


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize(
    "key", ["authorization", "Authorization", "token", "api_token", "password"]
)
def test_secrets_by_name_are_withheld(
    capsys: pytest.CaptureFixture[str], style: Style, key: str
) -> None:
    logs.configure("harness", "info", style)
    logs.get_logger().info("call", **{key: TOKEN})
    stderr = capsys.readouterr().err
    assert TOKEN not in stderr
    assert "[redacted]" in stderr


def test_counts_of_tokens_are_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """A generator's tokens are what it counts."""
    logs.configure("harness", "info", "json")
    logs.get_logger().info("generated", prompt_tokens=7, tokens=12, tokens_per_s=3.5)
    (line,) = read(capsys.readouterr().err)
    assert (line["prompt_tokens"], line["tokens"], line["tokens_per_s"]) == (7, 12, 3.5)


def test_every_line_says_which_service_wrote_it_when_and_how_bad(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("harness", "info", "json")
    logs.get_logger().info("ours")
    logging.getLogger("a.library").warning("theirs")
    lines = read(capsys.readouterr().err)
    assert [(line["event"], line["level"]) for line in lines] == [
        ("ours", "info"),
        ("theirs", "warning"),
    ]
    assert {line["service"] for line in lines} == {"harness"}
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_the_level_holds_for_us_and_for_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("harness", "warning", "json")
    for log in (logs.get_logger(), logging.getLogger("a.library")):
        log.info("quiet")
        log.warning("heard")
    assert [line["event"] for line in read(capsys.readouterr().err)] == ["heard", "heard"]


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("text", ["colour", "title", "line separator", "bidi override", "newline"])
async def test_a_failing_call_with_a_hostile_error(
    capsys: pytest.CaptureFixture[str], transport: str, style: Style, text: str
) -> None:
    """The text is withheld from the caller and escaped in the log."""

    async def fail(_request: Any, _context: Any) -> None:
        if _request.priority:
            raise errors.NotFound(HOSTILE[text])
        raise RuntimeError(HOSTILE[text])

    logs.configure("harness", "info", style)
    async with serve(Scripted(unary=fail), transport) as served:
        foreign = await failure(served.stub.Classify(request()))
        ours = await failure(served.stub.Classify(request(priority=1)))
    stderr = capsys.readouterr().err
    assert_clean(stderr)
    assert ours.details() == HOSTILE[text]
    assert "RuntimeError" in stderr
    assert "RuntimeError" not in foreign.details()
    request_id = str(metadata(foreign)["x-request-id"])
    (line,) = (line for line in stderr.splitlines() if request_id in line)
    assert CLASSIFY in line
    assert "call failed" in line


@pytest.mark.parametrize("style", ["json", "text"])
async def test_a_hostile_request_id_is_replaced(
    capsys: pytest.CaptureFixture[str], transport: str, style: Style
) -> None:
    """What grpc's own client lets through: printable ASCII; the rest is tried on a raw socket."""
    logs.configure("harness", "info", style)
    async with serve(Scripted(), transport) as served:
        for sent in ("a b", 'a"b', "a\\nb", "x" * 129, "{}", "<script>", "%0a"):
            call = served.stub.Classify(request(priority=10), metadata=(("x-request-id", sent),))
            given = metadata(await failure(call))["x-request-id"]
            assert given != sent
            assert sent not in capsys.readouterr().err
        call = served.stub.Classify(request(priority=10), metadata=(("x-request-id", "a-1_b:/."),))
        assert metadata(await failure(call))["x-request-id"] == "a-1_b:/."
        assert "a-1_b:/." in capsys.readouterr().err


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("sent", [b"\x1b[31m", b"\xff\xfe", "\u2028\u202e".encode(), b"\x9b31m"])
async def test_hostile_bytes_in_metadata_never_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], transport: str, style: Style, sent: bytes
) -> None:
    logs.configure("harness", "debug", style)
    headers = {b"x-request-id": sent, b"x-anything": sent, b"authorization": b"Bearer " + sent}
    async with serve(Scripted(), transport) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            raw.call(CLASSIFY, headers, request(priority=10))
            await raw.answered(1)
        await served.stub.Classify(request())
    assert_clean(capsys.readouterr().err)


async def test_a_token_among_bytes_that_are_not_text_is_not_logged_either(
    capsys: pytest.CaptureFixture[str], transport: str
) -> None:
    logs.configure("harness", "debug", "json")
    headers = {b"authorization": f"Bearer {TOKEN}".encode() + b"\xff"}
    async with serve(Scripted(), transport) as served:
        async with RawHttp2.connect(served.server.port) as raw:
            raw.call(CLASSIFY, headers, request(priority=10))
            await raw.answered(1)
    assert TOKEN not in capsys.readouterr().err


@pytest.mark.parametrize("style", ["json", "text"])
async def test_tokens_are_never_logged(
    capsys: pytest.CaptureFixture[str], transport: str, style: Style, tmp_path: Path
) -> None:
    """A good one, an unknown one, one without its scope, and one on a call that fails."""

    async def fail(_request: Any, _context: Any) -> None:
        raise RuntimeError("boom")

    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tokens: [{{identity: ann, sha256: {token_hash(TOKEN)}, scopes: [infer]}}]")
    logs.configure("harness", "debug", style)
    config = {"token_file": tokens, "log_sample_every": 1}
    async with serve(Scripted(unary=fail), transport, **config) as served:
        good = (("authorization", f"Bearer {TOKEN}"),)
        unknown = (("authorization", f"Bearer {TOKEN}x"),)
        error = await failure(served.stub.Classify(request(), metadata=good))
        await failure(served.stub.Classify(request(), metadata=unknown))
        await failure(served.stub.ListLoadedModels(request(), metadata=good))
    stderr = capsys.readouterr().err
    assert TOKEN not in stderr
    assert token_hash(TOKEN) not in stderr
    assert TOKEN not in str(error)
    assert "ann" in stderr


@pytest.mark.parametrize("every", [0, 3])
async def test_successes_are_sampled_and_failures_always_logged(
    capsys: pytest.CaptureFixture[str], transport: str, every: int
) -> None:
    logs.configure("harness", "info", "json")
    async with serve(Scripted(), transport, log_sample_every=every) as served:
        capsys.readouterr()
        for _ in range(9):
            await served.stub.Classify(request(), metadata=(("x-request-id", "mine"),))
        for _ in range(4):
            await failure(served.stub.Classify(request(priority=10)))
        await served.idle()
        calls = [line for line in read(capsys.readouterr().err) if line.get("method") == CLASSIFY]
    statuses = [line["status"] for line in calls]
    assert statuses.count("INVALID_ARGUMENT") == 4
    assert statuses.count("OK") == (9 // every if every else 0)
    assert all(line["duration_ms"] >= 0 and line["request_id"] for line in calls)
