"""How the suite ends: SIGTERM under load, a second start on the same data, a service that dies."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.load import Ended, lines_of
from tests.e2e.processes import ROOT, Suite, alive, environment, free_ports, read_json, shell, tool

README = ROOT / "README.md"
MARKED = re.compile(r"^<!-- test -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = (README, ROOT / "docs" / "gateway.md")
EXAMPLES = [
    found
    for page in PAGES
    if page.exists()
    for found in MARKED.findall(page.read_text(encoding="utf-8"))
]


class TestStopped:
    def test_it_exits_with_0_and_leaves_no_process(self, stopped: Ended) -> None:
        assert (stopped.status, stopped.left) == (0, set()), stopped.suite.said()
        assert len(stopped.suite.below) >= 5, "four services and an engine"

    def test_the_generation_in_hand_came_to_its_end(self, stopped: Ended) -> None:
        assert "event: error" not in stopped.streamed
        *_, last = [line for line in stopped.streamed.splitlines() if line.startswith("data: ")]
        finished = json.loads(last.removeprefix("data: "))["finished"]
        assert finished["usage"]["completionTokens"] == 60

    def test_no_request_that_was_accepted_failed(self, stopped: Ended) -> None:
        assert stopped.tally.failed == []
        answered = lines_of(stopped.suite.log("gateway"), "request")
        lost = [answered[i] for i in stopped.tally.unreachable if i in answered]
        assert [entry for entry in lost if entry["status"] == 200] == []

    def test_the_edge_was_drained_before_what_is_behind_it(self, stopped: Ended) -> None:
        for name in ("classifier", "generator", "registry"):
            refused = [
                entry
                for entry in lines_of(stopped.suite.log(name), "call").values()
                if entry.get("reason") == "DRAINING"
            ]
            assert refused == [], f"the {name} refused what the gateway had accepted"

    @pytest.mark.parametrize("name", ["registry", "classifier", "generator", "gateway"])
    def test_every_service_drained_to_the_end(self, stopped: Ended, name: str) -> None:
        lines = [json.loads(one) for one in stopped.suite.log(name).splitlines() if one[:1] == "{"]
        assert [line["complete"] for line in lines if line["event"] == "drained"] == [True]


class TestAgain:
    def test_a_second_start_answers(self, again: Suite) -> None:
        (answer,) = read_json(shell(again.line("curl")))
        assert answer["model"] == "sentiment"

    def test_it_keeps_the_versions_and_where_the_aliases_point(self, again: Suite) -> None:
        """What a person promoted is not undone by starting again."""
        versions = json.loads(shell("gristmill ls iris --json", **again.client_environment))
        live = json.loads(shell("gristmill show iris:live --json", **again.client_environment))
        assert sorted(version["version"] for version in versions) == [1, 2]
        assert live["version"] == 2
        sentiment = json.loads(shell("gristmill ls sentiment --json", **again.client_environment))
        assert [version["version"] for version in sentiment] == [1]

    @pytest.mark.parametrize(
        ("language", "code"), EXAMPLES, ids=[code.split("\n")[0][:40] for _, code in EXAMPLES]
    )
    def test_an_example_of_the_documents_works_as_it_stands(
        self, again: Suite, language: str, code: str
    ) -> None:
        if "grpcurl" in code:
            tool("grpcurl")
        lines = {"sh": code, "python": f"python - <<'END_OF_EXAMPLE'\n{code}END_OF_EXAMPLE\n"}
        assert language in lines, f"a {language} block cannot be run from here"
        printed = shell(lines[language])
        assert printed.strip()
        assert '"error"' not in printed

    def test_the_readme_has_examples_to_test(self) -> None:
        assert all(page.exists() for page in PAGES)
        assert {language for language, _ in EXAMPLES} >= {"sh", "python"}

    def test_a_second_suite_on_the_same_ports_says_so_and_leaves_the_first_alone(
        self, again: Suite, tmp_path: Path
    ) -> None:
        arguments = [f"--{name}-port={port}" for name, port in again.ports.items()]
        done = subprocess.run(
            [*again.process.args[:3], *arguments, f"--data={tmp_path}", "--admin-port-base=0"],  # type: ignore[index]  # a list
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "cannot listen" in done.stderr
        assert httpx.get(f"{again.http}/health/ready", trust_env=False).status_code == 200


class TestDied:
    def test_a_service_that_dies_takes_the_suite_with_it_and_says_why(self, died: Ended) -> None:
        assert died.status == 1
        assert "the classifier ended with status -9" in died.suite.said()
        assert died.left == set()


class TestInterrupted:
    def test_a_start_that_is_given_up_leaves_nothing(self, tmp_path: Path) -> None:
        """Ctrl-C while models are being pushed and loaded."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "services", f"--data={tmp_path / 'data'}"),
                *(f"--{name}-port={port}" for name, port in free_ports().items()),
                "--admin-port-base=0",
            ],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        suite = Suite(process, tmp_path / "data", {}, tmp_path / "none")
        assert process.stdout is not None
        for line in process.stdout:
            if "READY" in line:
                break
        suite.signal(signal.SIGINT)
        assert suite.wait() == 0, suite.output
        assert alive(suite.below) == set()
