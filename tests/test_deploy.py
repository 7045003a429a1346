"""What ``scripts/deploy`` has for Grafana and Prometheus asks only for what is there."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import nexa_runtime
from nexa_runtime.telemetry.metrics.catalogue import FAMILIES, Kind

DEPLOY = Path(nexa_runtime.__file__).parents[1] / "scripts" / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
ALERTS_FILE = DEPLOY / "nexa-alerts.yml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(ALERTS_FILE.read_text())["groups"][0]["rules"]

PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
VARIABLE_QUERIES = [(name, one["query"]["query"]) for name, one in VARIABLES.items() if name != "datasource"]

_PROCESS = {
    "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds",
}  # fmt: skip
_METRIC = re.compile(r"\b((?:nexa|process)_[a-z_]+)(?:\{([^}]*)\})?")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def labels_by_name() -> dict[str, set[str]]:
    """Every name of a sample, with the labels that it has."""
    known: dict[str, set[str]] = {name: set() for name in _PROCESS}
    for family in FAMILIES:
        labels = set(family.labels)
        if family.kind is Kind.HISTOGRAM:
            known |= {f"{family.name}_bucket": labels | {"le"}}
            known |= {f"{family.name}_{suffix}": labels for suffix in ("count", "sum")}
        else:
            known[family.name] = labels
    return known


LABELS = labels_by_name()


def asked(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics of an expression, and the labels that it picks by or groups by."""
    grouped = {
        name.strip()
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        for name in group.split(",")
    }
    for name, selector in _METRIC.findall(expression):
        yield name, {*re.findall(r"(\w+)\s*[=!]", selector), *grouped}


@pytest.mark.parametrize(
    ("where", "expression"),
    [*QUERIES, *VARIABLE_QUERIES, *((rule["alert"], rule["expr"]) for rule in ALERTS)],
)
def test_what_is_asked_for_exists(where: str, expression: str) -> None:
    found = list(asked(expression))
    assert found, where
    for name, labels in found:
        assert name in LABELS, where
        assert labels <= LABELS[name] | {"instance"}, where


def test_the_dashboard_can_be_imported_anywhere() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert {one["datasource"]["uid"] for one in PANELS} == {"${datasource}"}
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Tenants", "Engine", "Memory", "Operations"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r"\$(\w+)", " ".join(expression for _, expression in QUERIES)))
    assert used == {*VARIABLES, "__rate_interval"} - {"datasource"}


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_waits_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["for"]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")


def promtool(*arguments: str) -> None:
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_promtool_takes_the_alerts() -> None:
    promtool("check", "rules", str(ALERTS_FILE))


@needs_promtool
def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = []
    for number, (_, expression) in enumerate(QUERIES):
        plain = expression.replace("$__rate_interval", "5m")
        rules.append({"record": f"panel:{number}", "expr": re.sub(r"\$\w+", ".*", plain)})
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(path))


FIRED: list[tuple[str, dict[str, str], bool]] = [
    ("NexaNotReady", {"nexa_ready": "0x10"}, True),
    ("NexaNotReady", {"nexa_ready": "1x10"}, False),
    ("NexaGone", {"nexa_ready": "1x10"}, True),
    ("NexaGone", {'nexa_build_info{version="1"}': "1x10"}, False),
    ("NexaEngineStuck", {"nexa_sequences_running": "2x10", "nexa_rows_total": "7x10"}, True),
    ("NexaEngineStuck", {"nexa_sequences_running": "2x10", "nexa_rows_total": "7+7x10"}, False),
    ("NexaEngineStuck", {"nexa_sequences_running": "0x10", "nexa_rows_total": "7x10"}, False),
    ("NexaUsageLost", {'nexa_usage_dropped_records_total{sink="file"}': "0x5 3x5"}, True),
    ("NexaUsageLost", {'nexa_usage_dropped_records_total{sink="file"}': "3x10"}, False),
    ("NexaLimitsSourceDown", {'nexa_limits_source_up{source="vault"}': "0x10"}, True),
]


@needs_promtool
@pytest.mark.parametrize(("alert", "series", "fires"), FIRED)
def test_an_alert_fires_when_it_should(
    tmp_path: Path, alert: str, series: dict[str, str], fires: bool
) -> None:
    # promtool compares an alert with all its labels, so its presence is asked for as a series.
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if fires else []
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
                "eval_time": "9m",
                "exp_samples": expected,
            }
        ],
    }
    path = tmp_path / "case.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(ALERTS_FILE)], "evaluation_interval": "1m", "tests": [case]})
    )
    promtool("test", "rules", str(path))
