"""The `gristmill` command: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill_client.cli.app import app, main
from gristmill_client.cli.hints import in_one_line
from gristmill_client.cli.output import size
from gristmill_client.cli.serve import is_runnable
from gristmill_client.cli.settings import Ref, ref_of
from gristmill_client.errors import ErrorDetails, NotFound, Overloaded, PermissionDenied
from typer.testing import CliRunner, Result

from tests.unit.client.fake_bidi import FakeBidi
from tests.unit.client.fake_registry import FakeRegistry
from tests.unit.client.fakes import SOON_S, FakeClassifier, FakeGenerator, FakeHealth, serving
from tests.unit.client.test_client_push import MANIFEST
from tests.unit.client.test_client_watch import change, complete, script, snapshot

Run = Callable[..., Result]


class Suite:
    """All three services at one address, and the command pointed at it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.registry = FakeRegistry()
        self.generator = FakeGenerator()

    def run(self, *arguments: str, input: str | None = None) -> Result:  # noqa: A002  # the runner's
        return CliRunner().invoke(app, [*self.options(), *arguments], input=input)

    def options(self) -> list[str]:
        return [f"--{name}={self.address}" for name in ("registry", "classifier", "generator")]


@pytest.fixture
def suite() -> Iterator[Suite]:
    made = Suite("")
    with serving(
        made.registry.register,
        made.generator.register,
        FakeClassifier().register,
        FakeHealth(1).register,
    ) as address:
        made.address = address
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.yaml").write_text(MANIFEST)
    (folder / "model.onnx").write_bytes(b"onnx" * 1000)
    return folder


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_push_pull_and_list_in_json(suite: Suite, folder: Path, tmp_path: Path) -> None:
    version = parsed(suite.run("push", str(folder), "--alias", "live", "--json"))
    assert (version["model"], version["version"], version["state"]) == ("sentiment", 1, "READY")
    assert [model["name"] for model in parsed(suite.run("ls", "--json"))] == ["sentiment"]
    assert [v["version"] for v in parsed(suite.run("ls", "sentiment", "--json"))] == [1]
    shown = parsed(suite.run("show", "sentiment", "--json"))
    assert shown["aliases"][0]["alias"] == "live"
    assert parsed(suite.run("show", "sentiment:1", "--json"))["metrics"] == {"accuracy": 0.93}
    pulled = parsed(suite.run("pull", "sentiment:live", str(tmp_path / "to"), "--json"))
    assert pulled["version"]["version"] == 1
    assert (tmp_path / "to" / "model.onnx").read_bytes() == b"onnx" * 1000


def test_push_pull_and_list_for_people(suite: Suite, folder: Path, tmp_path: Path) -> None:
    result = suite.run("push", str(folder))
    assert result.stdout == "sentiment:1 READY, 2 files, 4.2 kB\n"
    assert result.stderr == ""  # no bar where nobody looks
    assert suite.run("promote", "sentiment", "1").stdout == "sentiment:live is version 1\n"
    heading, row = suite.run("ls").stdout.splitlines()
    assert heading.split() == ["MODEL", "TASK", "LATEST", "UPDATED", "DESCRIPTION"]
    assert row.split()[:2] == ["sentiment", "classification"]
    assert "live" in suite.run("ls", "sentiment").stdout
    assert "Says how a sentence feels." in suite.run("show", "sentiment").stdout
    assert "model.onnx" in suite.run("show", "sentiment:live").stdout
    assert "in " in suite.run("pull", "sentiment", str(tmp_path / "to")).stdout


def test_rm_takes_a_version_or_a_model(suite: Suite) -> None:
    suite.registry.add_version("sentiment", {})
    assert suite.run("rm", "sentiment:live").exit_code == 2
    assert parsed(suite.run("rm", "sentiment:1", "--json")) == {"deleted": "sentiment:1"}
    assert suite.run("rm", "sentiment").stdout == "deleted sentiment\n"
    assert not suite.registry.models


def test_run_prints_the_tokens(suite: Suite) -> None:
    assert suite.run("run", "smollm2", "Hi").stdout == "Hello, world\n"
    chat = suite.generator.requests[0].prompt.chat
    assert chat.messages[0].content == "Hi"


def test_run_reads_standard_input(suite: Suite) -> None:
    suite.run("run", "smollm2:2", "--raw", "--max-tokens", "7", input="Once upon\na time\n")
    request = suite.generator.requests[0]
    assert request.prompt.text.text == "Once upon\na time"
    assert (request.model.version, request.params.max_tokens) == (2, 7)


def test_run_in_json_is_the_whole_answer(suite: Suite) -> None:
    answer = parsed(suite.run("run", "smollm2", "Hi", "--system", "Be brief", "--json"))
    assert (answer["text"], answer["finish_reason"]) == ("Hello, world", "stop")
    assert answer["usage"]["completion_tokens"] == 3


def test_classify_in_json(suite: Suite) -> None:
    (prediction,) = parsed(suite.run("classify", "sentiment", "good", "--json"))
    assert (prediction["label"], prediction["score"], prediction["error"]) == (
        "positive",
        0.75,
        None,
    )


def test_classify_reads_lines_and_fails_if_one_does(suite: Suite) -> None:
    result = suite.run("classify", "sentiment", "--json", input="good\nbad\n")
    assert result.exit_code == 1
    good, bad = json.loads(result.stdout)
    assert good["error"] is None
    assert bad["error"]["reason"] == "INVALID_FIELD"
    assert "error" in suite.run("classify", "sentiment", "bad").stdout


def test_classify_takes_numbers(suite: Suite) -> None:
    (prediction,) = parsed(suite.run("classify", "iris", "5.1,3.5", "--features", "--json"))
    assert prediction["label"] == "positive"
    assert suite.run("classify", "iris", "tall", "--features").exit_code == 2


def test_classify_takes_images_by_their_paths(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("cat.png", "dog.png")]
    Path(paths[0]).write_bytes(b"good")
    Path(paths[1]).write_bytes(b"bad")
    fake = FakeBidi()
    with serving(fake.register) as address:
        suite = Suite(address)
        result = suite.run("classify", "vision:2", *paths, "--images")
        rows = [row.split() for row in result.stdout.splitlines()[1:]]
        assert rows[0] == ["positive", "0.7500", paths[0]]
        assert rows[2][:2] == ["error", paths[1]]
        assert result.exit_code == 1
        assert suite.run("classify", "vision", "no.png", "--images").exit_code == 2
        assert suite.run("classify", "vision", "x", "--images", "--features").exit_code == 2
    sent = [[one.item.image.data for one in message.items] for message in fake.messages]
    assert sent == [[b"good"], [b"bad"]]
    assert fake.effective["0"][0].version == 2


def test_classify_has_no_limit_of_items(suite: Suite) -> None:
    lines = "".join(f"line {number}\n" for number in range(1025))
    found = parsed(suite.run("classify", "sentiment", "--json", input=lines))
    assert len(found) == 1025


def test_watch_prints_an_object_in_each_line(suite: Suite) -> None:
    suite.registry.watch_scripts = [
        script(snapshot(1), complete(), change(8)),
        script(then=lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "enough")),
    ]
    result = suite.run("watch", "sentiment", "--json")
    kinds = [json.loads(line)["kind"] for line in result.stdout.splitlines()]
    assert kinds == ["snapshot", "bookmark", "updated"]
    assert isinstance(result.exception, NotFound)


def test_watch_for_people_is_a_line_for_each_change(suite: Suite) -> None:
    suite.registry.watch_scripts = [
        script(change(8)),
        script(then=lambda context: context.abort(grpc.StatusCode.NOT_FOUND, "enough")),
    ]
    result = suite.run("watch", "--after", "7")
    assert result.stdout == "8  updated  models/sentiment/aliases/live  -> 8  by ann\n"


def test_doctor_finds_what_is_well_and_what_is_not(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRISTMILL_TOKEN", "secret")
    report = parsed(suite.run("doctor", "--json"))
    assert {finding["status"] for finding in report["services"]} == {"SERVING"}
    assert report["environment"] == {"GRISTMILL_TOKEN": "(set)"}
    result = CliRunner().invoke(
        app, [*suite.options(), "--generator=127.0.0.1:1", "--timeout", "1", "doctor"]
    )
    assert result.exit_code == 1
    assert "start it with `gristmill serve generator`" in result.stdout
    assert "secret" not in result.stdout


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(str(caught.value.code))


def test_failures_are_one_line_on_stderr(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*suite.options(), "show", "nothing"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "gristmill: NOT_FOUND (MODEL_NOT_FOUND): there is no models/nothing "
        "[request request-1]: `gristmill ls` lists the models\n"
    )


def test_debug_shows_the_traceback(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--debug", *suite.options(), "show", "nothing"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_usage_and_success_have_their_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["ls", "--nonsense"]) == 2
    assert exit_code(["sho"]) == 2
    assert "Did you mean 'show'" in capsys.readouterr().err
    assert exit_code(["--version"]) == 0


def test_an_interrupt_is_130(suite: Suite) -> None:
    gone = threading.Event()

    def play(context: Any) -> Iterator[Any]:
        # Before the first message: a call that ends right after it runs no further here.
        context.add_callback(gone.set)
        yield change(8)
        gone.wait(SOON_S)

    suite.registry.watch_scripts = [play]
    code = "from gristmill_client.cli import main; main()"
    command = [sys.executable, "-c", code, *suite.options(), "watch", "--after", "7"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"8  updated")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert gone.wait(SOON_S)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionDenied(
                "no", ErrorDetails(reason="SCOPE_MISSING", metadata={"scope": "admin"})
            ),
            "PERMISSION_DENIED (SCOPE_MISSING): no: use a token that has the scope admin",
        ),
        (
            PermissionDenied("no", ErrorDetails(reason="SCOPE_MISSING")),
            "PERMISSION_DENIED (SCOPE_MISSING): no",
        ),
        (
            Overloaded("full", ErrorDetails(reason="QUEUE_FULL", retry_after=0.5)),
            "RESOURCE_EXHAUSTED (QUEUE_FULL): full: try again in 0.5 s",
        ),
        (ValueError("several\n lines"), "several lines"),
        (KeyError("x"), "'x': `gristmill --debug ...` shows where"),
    ],
)
def test_an_error_comes_with_what_to_do(error: Exception, line: str) -> None:
    assert in_one_line(error) == line


def test_references_name_versions_and_aliases() -> None:
    assert ref_of("m") == Ref("m")
    assert ref_of("m:3") == Ref("m", version=3)
    assert ref_of("m:live") == Ref("m", alias="live")


@pytest.mark.parametrize("text", ["", ":3", "m:"])
def test_references_that_name_nothing_are_refused(suite: Suite, text: str) -> None:
    assert suite.run("show", text).exit_code == 2


def test_serve_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    result = CliRunner().invoke(app, ["serve", "classifier", "--port", "1"])
    assert result.exit_code == 1
    assert "the classifier is not installed here" in result.stderr
    assert CliRunner().invoke(app, ["serve", "teapot"]).exit_code == 2


def test_serve_becomes_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "services" / "classifier").mkdir(parents=True)
    (tmp_path / "services" / "classifier" / "__main__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    became: list[Any] = []
    monkeypatch.setattr("os.execv", lambda *arguments: became.append(arguments))
    CliRunner().invoke(app, ["serve", "classifier", "--port", "1"])
    assert became == [
        (sys.executable, [sys.executable, "-m", "services.classifier", "--port", "1"])
    ]
    assert not is_runnable("services.generator", [str(tmp_path)])


def test_sizes_are_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 23_400_000, 2e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "23.4 MB",
        "2.0 TB",
    ]
