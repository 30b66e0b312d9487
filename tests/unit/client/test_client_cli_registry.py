"""The commands on policies, history and long work, against a real registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from gristmill_client import Change, Model, OperationState, Profile, ProfilePoint, TrafficPolicy
from gristmill_client.cli.app import app
from gristmill_client.cli.describing import change_row, described, moment_of
from gristmill_client.cli.output import jsonable, transfer_bar, work_bar
from gristmill_client.cli.settings import Ref, ref_of
from gristmill_client.cli.working import _print_profiles
from gristmill_client.resources import Progress
from typer.testing import CliRunner, Result

from tests.unit.client.test_client_operations import state
from tests.unit.registry.wire import RegistryProcess

Run = Callable[..., Result]


@pytest.fixture
def run(process: RegistryProcess) -> Run:
    """The command, pointed at the registry."""

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--registry", process.target, *arguments])

    return invoke


@pytest.fixture
def model(run: Run, bare: Path, named: str) -> str:
    """A model with one version, from a folder that says nothing."""
    result = run("push", str(bare), "--name", named, "--alias", "live")
    assert result.exit_code == 0, result.output
    assert f"{bare} has no model.yaml: pushed as {named}, task classification" in result.stderr
    assert result.stdout.startswith(f"{named}:1 READY, 2 files")
    return named


def parsed(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_calls_are_spread_and_gathered_again(run: Run, model: str) -> None:
    spread = run("split", model, "1=90", "live=10", "--sticky", "user", "--shadow", "1")
    assert [line.split() for line in spread.stdout.splitlines()[:3]] == [
        ["TARGET", "WEIGHT", "SHARE"],
        ["1", "90", "90.0%"],
        ["live", "10", "10.0%"],
    ]
    assert "version 1 gets a copy of every call" in spread.stdout
    assert parsed(run("split", model, "--json"))["sticky_key"] == "user"
    assert "split 1=90 live=10 --sticky user --shadow 1" in run("show", model).stdout
    assert parsed(run("show", model, "--json"))["traffic_policy"]["shadow_version"] == 1
    assert run("split", model, "--clear").stdout == f"{model} follows `live` again\n"
    assert run("split", model).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("split", "m", "1"),
        ("split", "m", "=1"),
        ("split", "m", "1=-1"),
        ("split", "m", "1=1", "--clear"),
        ("split", "m", "--sticky", "user"),
        ("history", "m", "--at", "yesterday"),
        ("import", "m", "--from", "hub"),
        ("import", "m", "--from", "hub:a", "--task", "painting"),
        ("convert", "m", "--to", "gguf"),
        ("profile", "m", "--batch-sizes", "many"),
        ("ops", "--wait"),
        ("archive", "m:live"),
        ("push", ".", "--repair", "m"),
        ("push", ".", ".", "--repair", "m:1"),
        ("push", ".", "--task", "painting"),
    ],
)
def test_what_makes_no_sense_is_usage(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_each_gate_that_does_not_hold_has_its_line(run: Run, model: str) -> None:
    refused = run(
        "promote", model, "1", "--alias", "best", "--gate", "f1>=0.5", "--gate", "ms<=holder+1"
    )
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        f"gristmill: {model}:best stays: gates do not hold",
        "  f1: version 1 has no such metric",
    ]
    moved = parsed(run("promote", model, "1", "--alias", "b", "--gate", "f1>=holder", "--json"))
    assert moved["gates"] == ["f1 >= that of the present version +0"]
    assert parsed(run("promote", model, "1", "--alias", "b", "--no-gates", "--json"))["gates"] == []


def test_history_tells_what_was_and_what_happened(run: Run, model: str) -> None:
    run("split", model, "1=1")
    heading, newest, *_ = run("history", model).stdout.splitlines()
    assert heading.split() == ["REVISION", "WHEN", "WHAT", "RESOURCE", "NOW", "BY"]
    assert newest.split()[-2:] == [f"models/{model}/trafficPolicy", "1=1"]
    changes = parsed(run("history", model, "--alias", "live", "--json"))
    assert [change["kind"] for change in changes] == ["created"]
    assert parsed(run("history", model, "--since", "1d", "--until", "12h", "--json")) == []
    now = datetime.now(UTC).isoformat()
    assert parsed(run("history", model, "--at", now, "--json"))["live"]["version"] == 1
    told = run("history", model, "--at", now).stdout
    assert f"{model}:live  -> 1" in told
    assert f"{model} split  1=1" in told
    assert "had no alias `live` and no split" in run("history", model, "--at", "1d").stdout
    assert "had no alias x" in run("history", model, "--at", now, "--alias", "x").stdout


def test_what_is_put_away_is_not_listed(run: Run, model: str) -> None:
    assert run("archive", f"{model}:1").exit_code == 1  # `live` points to it
    assert run("archive", model).stdout == f"archived {model}\n"
    assert model not in run("ls").stdout
    assert model in run("ls", "--filter", "archive_time:*", "--order-by", "name").stdout
    assert run("restore", f"models/{model}").stdout == f"restored models/{model}\n"
    assert parsed(run("ls", model, "--filter", "state = REJECTED", "--json")) == []


def test_work_is_listed_and_waited_for(run: Run, model: str, bare: Path) -> None:
    name = f"finalize.{model}.1"
    (row,) = [line for line in run("ops").stdout.splitlines() if line.startswith(name)]
    assert row.split()[1:4] == ["finalize", f"{model}:1", "done"]
    assert run("ops", "--running").stdout.splitlines()[1:] == []
    assert run("ops", name, "--wait").stdout.startswith(f"{model}:1 READY")
    shown = parsed(run("ops", name, "--json"))
    assert (shown["name"], shown["error"]) == (f"operations/{name}", None)
    assert "_session" not in shown
    assert run("ops", name, "--cancel").exit_code == 0  # it has ended: nothing to do
    for command in (("evaluate", model, "--data", model), ("profile", f"{model}:1")):
        assert getattr(run(*command).exception, "reason", "") == "WORKER_MISSING"
    assert run("profile", model, "--stored").stdout == ""
    assert run("sources").stdout.split() == ["SOURCE", "KIND"]
    assert run("push", str(bare), "--repair", f"models/{model}/versions/1").exit_code == 0


def test_rm_removes_for_real(run: Run, model: str) -> None:
    assert run("rm", f"{model}:1").exit_code == 1  # `live` points to it
    assert run("rm", model, "--force").exit_code == 0
    assert model in run("history", model).stdout


def test_full_names_are_references_too() -> None:
    assert ref_of("models/m") == Ref("m")
    assert ref_of("models/m/versions/3") == Ref("m", version=3)
    assert ref_of("models/m/aliases/live") == Ref("m", alias="live")


def test_moments_are_read_as_people_write_them() -> None:
    assert moment_of("2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert moment_of("2026-01-31").tzinfo is not None
    ago = datetime.now(UTC) - moment_of("90m")
    assert abs(ago - timedelta(minutes=90)) < timedelta(seconds=10)
    with pytest.raises(typer.BadParameter):
        moment_of("99999999999d")


def test_resources_are_told_in_a_word() -> None:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    archived = Model("m", "dataset", "", {}, 1, "", when, when, when)
    assert described(archived) == "archived"
    assert described(None) == ""
    assert described(TrafficPolicy("m", (), "", 2, "", None)) == "--shadow 2"
    change = Change(7, "deleted", "models/m", archived, None, "ann", "", None)
    assert change_row(change) == ("7", "", "deleted", "models/m", "", "ann")


def test_a_curve_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    _print_profiles([Profile("m", 1, "cpu", (ProfilePoint(8, 16, 1500, 2000),), None)])
    host, _, row = capsys.readouterr().out.splitlines()
    assert (host, row.split()) == ("m:1 on cpu", ["8", "16", "1.50", "2.00"])


def test_a_terminal_sees_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    going: OperationState[Any] = state(message="12 examples")
    with work_bar("evaluate") as on_work:
        assert on_work is not None
        on_work(going)
    with transfer_bar("push") as (on_progress, on_check):
        assert on_progress is not None
        assert on_check is not None
        on_progress(Progress("model.onnx", 1, 2, 1, 2))
        on_check(going)
    err = capsys.readouterr().err
    assert "evaluate 12 examples" in err
    assert "check 50% 12 examples" in err
    assert jsonable(going) is not None
