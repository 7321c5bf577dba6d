"""The Grafana dashboard: every number that it asks for exists."""

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from nanoray.cluster.gauges import FAILURES, GAUGES, SPENT, exported
from nanoray.serve.server_metrics import ServerMetrics

BOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"
NAME = re.compile(r"(?:ray_nanoray_|vllm:)\w+")


def read_board() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(BOARD.read_text())
    return board


def names_of_server(registry: CollectorRegistry) -> set[str]:
    """Name all series that the server can give, by the rules of Prometheus' text format."""
    found = set()
    for metric in registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        found |= {metric.name + end for end in ends.get(metric.type, [""])}
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in read_board()["panels"] if panel["type"] != "row"]


def test_every_series_that_is_drawn_exists() -> None:
    known = {f"ray_{exported(name)}" for name in GAUGES} | {f"ray_{SPENT}", f"ray_{FAILURES}"}
    known |= names_of_server(ServerMetrics().registry)

    asked = {
        name for panel in panels() for t in panel["targets"] for name in NAME.findall(t["expr"])
    }
    variables = {
        name
        for variable in read_board()["templating"]["list"]
        if variable["type"] == "query"
        for name in NAME.findall(variable["query"]["query"])
    }

    assert asked - known == set()
    assert variables - known == set()
    assert len(asked) > 20


def test_panels_do_not_overlap_and_have_a_title_a_unit_and_a_source() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in read_board()["panels"]]
    for panel in read_board()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(t["datasource"]["uid"] == "${source}" for t in panel["targets"])


def test_no_address_and_no_key_is_in_it() -> None:
    text = BOARD.read_text()

    assert "http" not in text
    assert not re.search("password|secret", text, re.IGNORECASE)
