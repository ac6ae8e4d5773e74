"""The event engine against recorded ASTRA-sim runs, to the nanosecond."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rapid_dse.events import network_command
from rapid_dse.interconnect.tables import CollectiveCase
from rapid_dse.trace.graph_file import parse_graph

DATA = Path(__file__).parent / "data" / "astrasim"
MODES = {"aware": "congestion_aware", "unaware": "congestion_unaware"}


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


COLLECTIVES = rows("collectives.csv")
FAULTS = rows("faulty_links.csv")


def times(row: dict[str, str]) -> tuple[int, int]:
    result = CollectiveCase.from_row(row).run()
    assert not result.deadlocked
    return result.makespan_ns, int(result.finish_ns.min())


def recorded(row: dict[str, str]) -> tuple[int, int]:
    return int(float(row["cycles_ns"])), int(float(row["cycles_min_rank"]))


def differing(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in table if times(row) != recorded(row)]


def test_spread_of_collectives() -> None:
    assert differing(COLLECTIVES[::7]) == []


@pytest.mark.golden
def test_all_collectives() -> None:
    assert len(COLLECTIVES) == 2083
    assert differing(COLLECTIVES) == []


def one_dimensional_failure(row: dict[str, str]) -> bool:
    return "x" not in row["npus"] and ", 0.0]" in row["faulty_links"]


def test_faulty_links() -> None:
    usable = [row for row in FAULTS if not one_dimensional_failure(row)]
    assert len(usable) == 17
    assert differing(usable) == []


def test_failed_link_of_one_dimension_is_an_error() -> None:
    failed = [row for row in FAULTS if one_dimensional_failure(row)]
    assert len(failed) == 2
    for row in failed:
        with pytest.raises(ValueError, match="factor 0 in a network of one dimension"):
            times(row)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", sorted((DATA / "graphs").glob("*.json")), ids=lambda p: p.stem)
def test_graph(path: Path, mode: str) -> None:
    data = json.loads(path.read_text())
    file = parse_graph(data)
    result = network_command.builtin_engine(file, MODES[mode])
    report = network_command.result_to_json(file.graph, result, links=False)
    want = data["results"][mode]
    assert report["node_times_ns"] == want["node_times_ns"]
    assert report["makespan_ns"] == want["makespan_ns"]
    assert report["finish_ns"] == want["finish_ns"]
    assert result.deadlocked is not want["ok"]
