"""Dashboard, rules and alerts ask only for metrics that processes have, in PromQL that parses."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from services.inference import nvml
from services.runtime import metrics

REPOSITORY = Path(__file__).parents[2]
PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
GRAFANA = REPOSITORY / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
SUFFIXES = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "gauge": ("",),
    "info": ("_info",),
}
TARGET_LABELS = {"job", "instance"}
# Written by Prometheus itself.
OWN: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}
KEYWORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "or", "and", "unless"}
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
MATCHED = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@cache
def served() -> dict[str, set[str]]:
    """Every series that a process of ours serves, with its labels; rules add theirs."""
    found = dict(OWN)
    for family in REGISTRY.collect():
        labels = {name for sample in family.samples for name in sample.labels}
        for suffix in SUFFIXES.get(family.type, ("",)):
            found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for family, labels in declared().values():
        for suffix in SUFFIXES[family.type]:
            found[family.name + suffix] |= labels
    return found | of_gpus()


@cache
def of_gpus() -> dict[str, set[str]]:
    """What is served where there is a GPU, which no machine of the tests has."""
    gpu = nvml.Gpu("cuda:0", "a GPU", memory_bytes=2, used_bytes=1, busy=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvml, "gpus", lambda: [gpu])
        return {one.name: set(one.samples[0].labels) for one in nvml.GpuCollector().collect()}


def declared() -> dict[str, tuple[Metric, set[str]]]:
    """What services.runtime.metrics declares: each family with its labels, by variable."""
    return {
        name: (next(iter(one.collect())), set(one._labelnames))
        for name, one in vars(metrics).items()
        if isinstance(one, MetricWrapperBase)
    }


@cache
def recorded() -> dict[str, set[str]]:
    """The series that rules.yml makes, with the labels that their names begin with."""
    rules = groups(PROMETHEUS / "rules.yml")
    levels = {rule["record"]: rule["record"].partition(":")[0] for rule in rules}
    labels = TARGET_LABELS | {"model", "version", "device", "level"}
    return {name: {one for one in labels if one in level} for name, level in levels.items()}


def groups(file: Path) -> list[dict[str, Any]]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def panels(dashboard: Any) -> Iterator[Any]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panels(panel) if panel.get("panels") else ()


def expressions() -> dict[str, str]:
    """Every PromQL expression, by where it stands, with Grafana's variables filled in."""
    found = {}
    for rule in (*groups(PROMETHEUS / "rules.yml"), *groups(PROMETHEUS / "alerts.yml")):
        found[rule.get("alert") or rule["record"]] = rule["expr"]
    for file in DASHBOARDS:
        dashboard = json.loads(file.read_text(encoding="utf-8"))
        for panel in panels(dashboard):
            for target in panel.get("targets", ()):
                expr = target["expr"].replace("$__rate_interval", "5m")
                found[f"{panel['title']} {target['refId']}"] = re.sub(r"\$\w+", ".+", expr)
        for note in dashboard["annotations"]["list"]:
            found[f"annotation {note['name']}"] = note["expr"]
    return found


EXPRESSIONS = expressions()


def asked(expr: str) -> set[str]:
    """The names of the series in an expression."""
    bare = GROUPING.sub(" ", re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expr))
    names = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(\(?)", bare)
    return {name for name, call in names if not call and name not in KEYWORDS}


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_series_exists(place: str) -> None:
    names = asked(EXPRESSIONS[place])
    assert names, "asks for nothing"
    assert names <= {*served(), *recorded()}


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_label_exists(place: str) -> None:
    expr = EXPRESSIONS[place]
    known = {**served(), **recorded()}
    for name, matchers in MATCHED.findall(expr):
        assert (
            set(LABEL.findall(re.sub(r"\"[^\"]*\"", "", matchers))) <= known[name] | TARGET_LABELS
        )
    possible = TARGET_LABELS.union(*(known[name] for name in asked(expr)))
    for _, grouped in GROUPING.findall(expr):
        assert {label.strip() for label in grouped.split(",")} <= possible
    if "histogram_quantile" in expr:
        assert "(le" in expr, "a quantile needs the buckets"


def test_a_wrong_suffix_would_be_noticed() -> None:
    assert asked('sum by (model) (rate(gristmill_items{model="a"}[5m])) or up') == {
        "gristmill_items",
        "up",
    }
    assert "gristmill_items" not in served()
    assert served()["gristmill_items_total"] == {"model", "version", "outcome"}


def test_one_dashboard_shows_what_the_metrics_have() -> None:
    (file,) = DASHBOARDS
    shown = {name for expr in EXPRESSIONS.values() for name in asked(expr)}
    families = {
        family.name
        for name, (family, _) in declared().items()
        if name not in ("BUILD", "CALLS_STARTED")
    } | of_gpus().keys()
    missing = {one for one in families if not any(name.startswith(one) for name in shown)}
    assert not missing, f"{file.name} and the rules leave these out"


def test_every_panel_says_what_it_shows() -> None:
    (file,) = DASHBOARDS
    found = list(panels(json.loads(file.read_text(encoding="utf-8"))))
    for unique in ("id", "title"):
        assert len({panel[unique] for panel in found}) == len(found)
    for panel in found:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_no_two_panels_overlap() -> None:
    (file,) = DASHBOARDS
    taken: dict[tuple[int, int], str] = {}
    for panel in panels(json.loads(file.read_text(encoding="utf-8"))):
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_the_provisioned_parts_fit_together() -> None:
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/gristmill.yml").read_text())
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    folder = provider["providers"][0]["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in compose["grafana"]["volumes"]
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/{DASHBOARDS[0].name}"


def test_every_alert_says_what_and_how_bad_and_is_tested() -> None:
    tested = {
        case["alertname"]
        for test in yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    }
    for alert in groups(PROMETHEUS / "alerts.yml"):
        assert alert["labels"]["severity"] in ("page", "warning")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        assert alert["alert"] in tested


@pytest.fixture
def promtool() -> str:
    """From Debian's package `prometheus`."""
    found = shutil.which("promtool")
    if found is None:
        assert os.environ.get("CI") != "true", "promtool is missing: apt-get install prometheus"
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return found


def run(*command: str | Path) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_prometheus_takes_its_configuration(promtool: str) -> None:
    run(promtool, "check", "config", PROMETHEUS / "prometheus.yml")


def test_alerts_fire_when_they_should(promtool: str) -> None:
    run(promtool, "test", "rules", PROMETHEUS / "alerts_test.yml")


def test_every_expression_of_the_dashboard_parses(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"checked:{number}", "expr": expr, "labels": {"place": place}}
        for number, (place, expr) in enumerate(EXPRESSIONS.items())
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", file)
