"""Artifacts of event-driven runs: timelines that Perfetto opens, traces, pictures; the environment's variables."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from generated import ONE, portion
from layout_spread import EVENT_BACKENDS, case
from program import done

from rapid_dse.events.backends import price
from rapid_dse.events.timeline import chrome_trace
from rapid_dse.parallel.enumeration import grid
from rapid_dse.sweep.table import priced_table

FOLDERS = dict(zip(EVENT_BACKENDS, ("astra_hybrid", "astra_hier", "astra_flat"), strict=True))
ROOT = Path(__file__).parent.parent


def _traces(backend: str, **settings: Any) -> dict[str, dict[str, Any]]:
    one, runs = case(num_gpus=32, tp=8, sequence_parallel=1, pp=2, global_batch_size=4), {}
    price(one.scenario(backend, **settings), one.layouts(), runs.update)
    return {name: chrome_trace(run, name) for name, run in runs.items()}


def _check_schema(event: dict[str, Any]) -> None:
    """What Chrome's trace-event format asks of complete events and of metadata."""
    assert event["ph"] in ("X", "M", "s", "f")
    assert isinstance(event["name"], str)
    assert isinstance(event["pid"], int)
    assert isinstance(event["tid"], int)
    if event["ph"] == "X":
        assert isinstance(event["ts"], int | float)
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    elif event["ph"] in "sf":
        assert isinstance(event["id"], int)
        assert event["ts"] >= 0
    else:
        assert event["name"] in ("process_name", "thread_name")
        assert isinstance(event["args"]["name"], str)


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("backend", EVENT_BACKENDS)
def test_timeline_has_chromes_schema_and_rows_never_overlap(backend: str, streams: int) -> None:
    for trace in _traces(backend, backend__streams=streams, software__dp_overlap=1.0, software__tp_backward_overlap=0.5).values():
        events = json.loads(json.dumps(trace))["traceEvents"]
        rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
        for event in events:
            _check_schema(event)
            if event["ph"] == "X":
                rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        assert rows
        for spans in rows.values():
            spans.sort()
            assert all(after[0] >= before[1] - 1e-6 for before, after in pairwise(spans))


def test_timeline_shows_operators_transfers_with_sizes_and_bubbles() -> None:
    events = [event for event in _traces("full_astrasim_flattened")["step"]["traceEvents"] if event["ph"] == "X"]
    names = {event["name"].partition(", micro-batch ")[0] for event in events}
    assert {"attention forward", "mlp backward", "tp all-gather", "pp send", "optimizer", "bubble"} <= names
    assert all(event["args"]["bytes"] > 0 for event in events if event["name"].startswith(("tp ", "pp send", "dp ")))
    assert {event["pid"] for event in events} == set(range(32))


def test_a_rank_is_named_by_its_stage_and_groups_and_a_pass_by_its_micro_batch() -> None:
    events = _traces("full_astrasim_flattened")["step"]["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names[0] == "stage 0, dp 0, tp 0 (rank 0)"  # 32 ranks: tp 8 inside, dp 2, pp 2 outside
    assert names[9] == "stage 0, dp 1, tp 1 (rank 9)"
    assert names[31] == "stage 1, dp 1, tp 7 (rank 31)"
    batches = [event["args"].get("micro_batch") for event in events if event["name"].startswith("attention forward") and event["pid"] == 0]
    assert set(batches) == {0, 1}, "of 4 sequences each of 2 replicas has 2, one a micro-batch"
    assert all("micro_batch" not in event.get("args", {}) for event in events if event["name"] == "optimizer")


def test_arrows_lead_from_a_send_to_the_pass_of_the_next_stage_that_waits_for_it() -> None:
    events = _traces("full_astrasim_flattened")["step"]["traceEvents"]
    begin, end = ({event["id"]: event for event in events if event["ph"] == kind} for kind in "sf")
    assert begin.keys() == end.keys()
    assert len(begin) == 2 * 2 * 16, "2 micro-batches, there and back, between the 16 pairs of ranks of two stages"
    ahead = [(begin[at], end[at]) for at in begin if begin[at]["pid"] < 16]
    assert len(ahead) == 32
    for start, stop in ahead:
        assert stop["pid"] == start["pid"] + 16
        assert stop["ts"] >= start["ts"]
        inside = [each for each in events if each["ph"] == "X" and (each["pid"], each["tid"]) == (start["pid"], start["tid"])]
        sent = next(each for each in inside if each["ts"] == start["ts"] and each["name"].startswith("pp send"))
        row = [each for each in events if each["ph"] == "X" and (each["pid"], each["tid"]) == (stop["pid"], stop["tid"])]
        waits = next(each for each in row if each["ts"] == stop["ts"] and each["name"] != "bubble")
        assert waits["args"]["micro_batch"] == sent["args"]["micro_batch"]


@pytest.mark.parametrize("backend", EVENT_BACKENDS)
def test_artifacts_are_kept_where_asked_for(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("chakra")
    monkeypatch.chdir(tmp_path)
    one = case(num_gpus=32, tp=8, sequence_parallel=1, pp=2, global_batch_size=4)
    price(one.scenario(backend), one.layouts())
    assert not list(tmp_path.iterdir())
    every = {f"backend__artifacts__{name}": True for name in ("persist", "graphs", "pictures", "timeline")}
    price(one.scenario(backend, **every), one.layouts())
    folder = tmp_path / "output" / "training" / FOLDERS[backend]
    for pattern in ("trace.0.et", "network.yml", "system.json", "links.csv", "timeline.json", "graph.0.svg", "run.svg", "trace.0.txt"):
        assert list(folder.rglob(pattern)), pattern


def test_no_trial_of_a_sweep_overwrites_what_another_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = []
    for chip in ("h100", "a100"):
        layouts = grid({**ONE, "num_gpus": [16], "global_batch_size": [16], "tp": [2, 8]})
        table = priced_table(portion(layouts, hw=chip, backend__name="hybrid", backend__artifacts__timeline=True))
        keys += table["key"].to_pylist()
    assert {path.parent.name for path in tmp_path.glob("output/training/astra_hybrid/*/timeline.json")} == set(keys)
    assert len(set(keys)) == 4


def test_single_trials_say_where_their_artifacts_are_and_keep_each_others(tmp_path: Path) -> None:
    said = []
    for backend, tp in (("hybrid", 4), ("hybrid", 8), ("analytical", 4), ("analytical", 8)):
        keys = ("model=llama3_1_8b", "hw.num_gpus=8", "workload.global_batch_size=8", f"parallel.tp={tp}", f"backend={backend}")
        out = done(tmp_path, *keys, "backend.artifacts.timeline=true").out
        said.append(tmp_path / out.split("artifacts in ")[1].strip())
    assert len(set(said)) == 4
    assert all((folder / "timeline.json").is_file() or list(folder.glob("*/timeline.json")) for folder in said)
    swept = done(tmp_path, "-m", *keys[:3], "parallel.tp=2,4", "backend=hybrid", "backend.artifacts.timeline=true", "search.study=s").out
    assert "output/training/astra_hybrid/<key of the row>" in swept
    assert said[0].name in set(pd.read_parquet(tmp_path / "results" / "s")["key"]), "the trial's folder is the row's key"


def test_variables_of_the_environment_set_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = ("RAPID_PERSIST_ASTRASIM_ARTIFACTS", "RAPID_VISUALIZE_GRAPHS", "RAPID_PERSIST_ARTIFACT_VIZ")
    for count in (0, 3):
        for name in variables:
            monkeypatch.setenv(name, "1") if count else monkeypatch.delenv(name, raising=False)
        printed = done(tmp_path, "--cfg", "backend=hybrid").out
        for key in ("persist", "graphs", "pictures"):
            assert f"{key}: {'true' if count else 'false'}" in printed


def test_an_analytical_trial_has_a_timeline_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = case(num_gpus=16, tp=4, pp=4, global_batch_size=8)
    found = price(one.scenario("analytical", backend__artifacts__timeline=True), one.layouts())
    events = json.loads((tmp_path / "output/training/analytical/timeline.json").read_text())["traceEvents"]
    end = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X")
    assert end / 1e6 == pytest.approx(float(found.step_time_s[0]), rel=0.02)
