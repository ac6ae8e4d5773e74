"""The driver: a study in the store and a ranked table, whatever interrupts it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from generated import ONE, ROOT, many, portion, scenario
from rich.console import Console

from rapid_dse import rank
from rapid_dse.command import guarded
from rapid_dse.config.hardware import Hardware
from rapid_dse.config.measured_boxes import SPANS, MeasuredRuns
from rapid_dse.config.run import Debug, Search
from rapid_dse.events.backends import price
from rapid_dse.parallel.enumeration import grid
from rapid_dse.sweep import chunks, driver, store, table, workers
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.standing import Aim


class Run:
    """One run of the driver with what it printed."""

    def __init__(self, portions: list[Portion], folder: Path, debug: Debug | None = None, **search: Any) -> None:
        out, err = io.StringIO(), io.StringIO()
        consoles = [Console(file=stream, width=200) for stream in (out, err)]
        settings = Search(**{"results_dir": str(folder), "study": "study", "jobs": 1, **search})
        self.code = driver.run(portions, settings, debug or Debug(), *consoles)
        self.out, self.err = out.getvalue(), err.getvalue()
        self.folder = folder / (settings.study or "")

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = store.read(self.folder, print).to_pylist()
        return found


@pytest.fixture
def priced_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call that prices, as they happen."""
    counted: list[int] = []

    def counting(found: Any, layouts: Any, **given: Any) -> Any:
        counted.append(len(layouts))
        return price(found, layouts)

    monkeypatch.setattr(table, "price", counting)
    return counted


def test_a_sweep_ends_in_files_and_a_ranked_table(tmp_path: Path) -> None:
    run = Run([portion(), portion(hw="a100")], tmp_path)
    assert run.code == 0
    assert len(run.rows) == 8
    lines = run.out.splitlines()
    assert lines[0].split()[:3] == ["#", "hw", "layout"]
    assert lines[1].split()[:2] == ["1", "h100"], "the fastest that fits comes first"
    assert "8 trials: 4 fit, 2 do not fit in memory, 2 break a rule" in run.out
    assert "tp must divide num_attention_heads" in run.out
    assert str(tmp_path / "study") in run.out


def test_rejections_of_the_enumeration_are_shown(tmp_path: Path) -> None:
    found = portion()
    found = Portion(found.scenario, found.choices, {}, found.layouts, found.rule, found.reasons, {"a rule": 1234})
    assert "1,234  a rule" in Run([found], tmp_path).out


def test_a_rerun_computes_nothing(tmp_path: Path, priced_rows: list[int]) -> None:
    portions = [portion(), portion(hw="a100")]
    first = Run(portions, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    del priced_rows[:]
    second = Run(portions, tmp_path)
    assert priced_rows == []
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == files
    assert second.out.splitlines()[:-1] == first.out.splitlines()[:-1]
    assert "all read from there" in second.out


def test_a_wider_sweep_computes_only_what_is_missing(tmp_path: Path, priced_rows: list[int]) -> None:
    Run([portion(layouts=many(100).take(slice(20, 60)))], tmp_path)
    Run([portion(layouts=many(100).take(slice(80, 90)))], tmp_path)
    del priced_rows[:]
    wide = Run([portion(layouts=many(100))], tmp_path)
    assert priced_rows == [50]
    assert sorted(row["workload.global_batch_size"] for row in wide.rows) == [1024 * index for index in range(1, 101)]
    assert "100 trials" in wide.out
    del priced_rows[:]
    assert "100 trials" in Run([portion(layouts=many(100))], tmp_path).out
    assert priced_rows == []


@pytest.mark.parametrize("harm", [b"", b"PAR1 not really PAR1"])
def test_a_damaged_file_is_reported_and_computed_again(tmp_path: Path, priced_rows: list[int], harm: bytes) -> None:
    first = Run([portion()], tmp_path)
    (path,) = first.folder.iterdir()
    path.write_bytes(harm)
    del priced_rows[:]
    second = Run([portion()], tmp_path)
    assert path.name in second.err
    assert "damaged" in second.err
    assert sum(priced_rows) == 3
    assert len(second.rows) == 4
    assert "damaged" not in Run([portion()], tmp_path).err


def test_rows_that_failed_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_tp_32(found: Any, layouts: Any, **given: Any) -> Any:
        if (layouts.tp == 32).any():
            raise RuntimeError("a bad day")
        return price(found, layouts)

    with monkeypatch.context() as patched:
        patched.setattr(table, "price", fails_at_tp_32)
        first = Run([portion()], tmp_path)
    assert first.code == 0
    assert "1 trial failed: RuntimeError: a bad day" in first.err
    second = Run([portion()], tmp_path)
    assert sorted(row["status"] for row in second.rows) == ["invalid", "ok", "ok", "oom"]
    assert len(list(second.folder.iterdir())) == 1


UNPRICEABLE: dict[str, Any] = {"hw__operator_model": "measured", "hw__measured_table": "no/such.csv"}


def test_when_every_trial_fails_the_exit_code_says_so(tmp_path: Path) -> None:
    run = Run([portion(layouts=many(5), **UNPRICEABLE)], tmp_path)
    assert run.code == 1
    assert "no/such.csv" in run.err


def test_fail_fast_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no/such"):
        Run([portion(layouts=many(5), **UNPRICEABLE, search__fail_fast=True)], tmp_path, fail_fast=True)


def test_nothing_legal_is_no_failure(tmp_path: Path) -> None:
    run = Run([chunks.take(portion(), slice(0, 0))], tmp_path)
    assert run.code == 0
    assert "0 trials: none" in run.out
    assert "no layout of this space is legal" in run.out


def test_workers_and_this_process_write_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    portions = [portion(layouts=many(1000), hw=hw) for hw in ("h100", "a100", "h200")]
    here = Run(portions, tmp_path / "here")
    monkeypatch.setattr(workers, "_WORTH_WORKERS_SECONDS", 0.0)
    there = Run(portions, tmp_path / "there", jobs=2)
    names = [sorted(path.name for path in run.folder.iterdir()) for run in (here, there)]
    assert names[0] == names[1]
    for name in names[0]:
        left, right = (store.read_file(run.folder / name).drop_columns(["elapsed_s"]) for run in (here, there))
        assert left.equals(right)
    assert here.out.splitlines()[:-1] == there.out.splitlines()[:-1]


def test_many_small_portions_share_files(tmp_path: Path) -> None:
    run = Run([portion(layouts=many(2), keys={"hw.price": float(cost)}, hw__price=float(cost)) for cost in range(1, 40)], tmp_path)
    assert len(run.rows) == 78
    assert len(list(run.folder.iterdir())) == 1
    assert run.out.splitlines()[1].split()[:2] == ["#", "price"], "of each batch, which are other jobs, a table"


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"objectives": ["step_times"]}, "search.objectives=step_times: no column of numbers; did you mean 'step_time_s'?"),
        ({"study": "../elsewhere"}, "search.study='../elsewhere': no name of a folder"),
    ],
)
def test_bad_settings_are_one_line_before_anything_is_priced(tmp_path: Path, search: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=r"^search") as caught:
        Run([portion()], tmp_path, **search)
    assert str(caught.value).startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_the_default_study_is_named_by_choices_and_content() -> None:
    base = driver.default_study([portion()])
    assert base.startswith("h100-llama3_1_8b-")
    assert base == driver.default_study([portion(layouts=many(9))]), "more layouts go on in the same study"
    assert base != driver.default_study([portion(hw__price=1.0)])
    assert driver.default_study([portion(), portion(hw="a100")]).startswith("h100+a100-llama3_1_8b-")


def test_another_objective_ranks(tmp_path: Path) -> None:
    layouts = grid({**ONE, "tp": [4, 8, 16, 32]})
    run = Run([portion(layouts=layouts)], tmp_path, objectives=["peak_memory_bytes"])
    first = run.out.splitlines()[1]
    assert "tp32" in first


@pytest.mark.parametrize(("model", "shown"), [("llama3_1_8b", "±8 %"), ("mixtral_8x7b", "?")])
def test_the_expected_error_stands_beside_the_step_time(tmp_path: Path, model: str, shown: str) -> None:
    """That of the measured runs where a row is alike; none of a mixture of experts, of which no run was measured."""
    out = io.StringIO()
    search = Search(results_dir=str(tmp_path), study="s")
    measured = portion(model=model)
    box = MeasuredRuns.model_validate(
        {"chip": measured.scenario.hw.name, "cluster": "reference", "precision": "bf16", "runs": 9, "models": 2, "error": 0.083}
        | {"zero": [0, 1, 2, 3], "recompute": ["none", "selective", "full"], "schedule": ["1f1b", "interleaved_1f1b"]}
        | {name: [1, 1e12] for name in SPANS}
    )
    profile = measured.scenario.software.model_copy(update={"measured": (box,)})
    scenario = measured.scenario.model_copy(update={"software": profile})
    driver.run([replace(measured, scenario=scenario)], search, Debug(), Console(file=out, width=200))
    assert out.getvalue().count(f" {shown} ") > 1


def test_snapshots_are_hardware_files_that_price_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    portions = [portion(layouts=grid({**ONE, "num_gpus": [32, 64], "tp": [8, 16], "zero": [0, 1]}), hw=hw) for hw in ("h100", "a100")]
    Run(portions, tmp_path / "results", Debug(hw_snapshots=True))
    (folder,) = (tmp_path / "dbg_hw_conf").iterdir()
    files = sorted(folder.iterdir())
    assert files[0].name.startswith("baseline_000_tp")
    assert len(files) == 8, "zero 0 and 1 run on the same hardware"
    for path in files:
        tree = yaml.safe_load(path.read_text())
        read = Hardware.model_validate(tree)
        original = scenario(hw=tree["name"])
        again = original.model_copy(update={"hw": read})
        layouts = grid({**ONE, "num_gpus": [read.num_gpus], "tp": [8]})
        assert price(again, layouts).step_time_s == price(original, layouts).step_time_s
        degrees = {part[:2]: int(part[2:]) for part in path.stem.split("_")[2:]}
        assert degrees["tp"] * degrees["cp"] * degrees["dp"] * degrees["lp"] == read.num_gpus


INTERRUPTED = """
import sys
from dataclasses import replace
from pathlib import Path
from generated import many, portion
from rapid_dse.config.run import Debug, Search
from rapid_dse.sweep import chunks, driver, workers
import numpy as np

workers._WORTH_WORKERS_SECONDS = 0.0
chunks.CHUNK = 3000
if __name__ == "__main__":
    first = portion(layouts=many(3000))
    hardware = [first.scenario.hw.model_copy(update={"price": 1.0 + step}) for step in range(int(sys.argv[3]))]
    portions = [replace(first, scenario=first.scenario.model_copy(update={"hw": hw})) for hw in hardware]
    print("ready", flush=True)
    sys.exit(driver.run(portions, Search(results_dir=sys.argv[1], study="study", jobs=int(sys.argv[2])), Debug()))
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_what_was_done_and_says_so_in_one_line(tmp_path: Path, jobs: int) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    arguments = [sys.executable, str(script), str(tmp_path), str(jobs), "400"]
    # A session of its own, so that the signal reaches the workers too, as from a terminal, and not this test.
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        folder, deadline = tmp_path / "study", time.monotonic() + 60
        while len(list(folder.glob("*.parquet"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    said = [line for line in err.splitlines() if " trials priced (" not in line]  # how far it is, where the machine is slow
    assert len(said) == 1, err
    assert said[0].startswith("interrupted after ")
    kept = list(folder.glob("*.parquet"))
    assert 4 <= len(kept) < 400
    assert all(len(store.read_file(path)) == 3000 for path in kept)
    assert not list(folder.glob("*.part"))
    assert not _processes_of_session(process.pid), "no worker stays behind"


def test_what_a_killed_worker_had_is_priced_again(tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    guarded_script = (
        script.read_text().replace("sys.exit(driver.run", "sys.exit(guarded(lambda _: driver.run").replace("Debug()))", "Debug()), []))")
    )
    script.write_text("from rapid_dse.command import guarded\n" + guarded_script)
    arguments = [sys.executable, str(script), str(tmp_path), "2", "30"]
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        folder, deadline = tmp_path / "study", time.monotonic() + 60
        while len(list(folder.glob("*.parquet"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        # Workers write the files; the writer's process id is in the name of a file that is being written.
        while not (parts := [path.name for path in folder.glob(".*.part")]) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(int(parts[0].removesuffix(".part").rsplit("@", 1)[1]), signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert all(len(store.read_file(path)) == 3000 for path in folder.glob("*.parquet"))


def _processes_of_session(session: int) -> list[int]:
    deadline = time.monotonic() + 10
    while found := [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _session(entry) == session]:
        if time.monotonic() > deadline:
            return found
        time.sleep(0.1)
    return []


def _session(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3])
    except (OSError, IndexError):
        return None


def test_rank_shows_the_best_that_fit_and_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run([portion(), portion(hw="a100")], tmp_path)
    for source in (run.folder, tmp_path, next(run.folder.iterdir())):
        assert rank.run([str(source), "--top", "2"]) == 0
    assert rank.run([str(run.folder), "--top", "3", "--by", "-mfu"]) == 0
    shown = capsys.readouterr().out
    assert "8 trials: 4 fit, 2 do not fit in memory, 2 break a rule" in shown
    rates = [float(line.split(" %")[1].split()[-1]) for line in shown.splitlines()[-9:] if "%" in line]  # after the accuracy to expect
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(["--by", "mfuu"], "did you mean 'mfu'?"), (["--top", "0"], "--top=0"), (["--by", "status"], "no column of numbers")],
)
def test_rank_answers_bad_input_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    run = Run([portion()], tmp_path)
    assert guarded(rank.run, [str(run.folder), *arguments]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert len(err.splitlines()) == 1


def test_rank_of_no_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(rank.run, [str(tmp_path / "none")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert guarded(rank.run, [str(tmp_path / "other.csv")]) == 2
    assert "no results of rapid_dse" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rank_reads_what_pandas_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    frame = table.priced_table(portion()).to_pandas()
    path = tmp_path / f"results.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    assert rank.run([str(path)]) == 0
    assert "4 trials: 2 fit, 1 do not fit in memory, 1 break a rule" in capsys.readouterr().out


def test_cores_are_those_that_this_process_may_use() -> None:
    assert workers.cores(-1) == len(os.sched_getaffinity(0))
    assert (workers.cores(0), workers.cores(1), workers.cores(7)) == (1, 1, 7)


def test_chunks_hold_every_layout_once_and_in_order(tmp_path: Path) -> None:
    portions = [portion(layouts=many(count)) for count in (1, 2, 120_000, 3)] + [portion(layouts=many(4), hw="a100")]
    found = list(chunks.chunks_of(portions, tmp_path, Aim("step_time_s", 5)))
    assert max(len(chunk) for chunk in found) <= chunks.CHUNK
    batches = np.concatenate([piece.layouts.global_batch_size for chunk in found for piece in chunk.pieces])
    assert batches.tolist() == np.concatenate([each.layouts.global_batch_size for each in portions]).tolist()
    assert all(len({piece.choices["hw"] for piece in chunk.pieces}) == 1 for chunk in found)


def test_a_sweep_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from generated import portion\n"
        "before = set(sys.modules)\n"  # Hydra composes what the tests' scenarios begin with
        "from rapid_dse.config.run import Debug, Search\n"
        "from rapid_dse.sweep import driver\n"
        f"search = Search(results_dir={str(tmp_path)!r}, study='s')\n"
        "assert driver.run([portion()], search, Debug()) == driver.run([portion()], search, Debug()) == 0\n"
        "heavy = {'pandas', 'optuna', 'scipy', 'numba', 'joblib', 'hydra'}\n"
        "assert not heavy & set(sys.modules) - before, heavy & set(sys.modules) - before\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("column", "held", "said"),
    [
        ("status", pa.array([1]), "column status holds int64; expected texts"),
        ("reason", pa.array([{"a": 1}]), "column reason holds struct<a: int64>; expected texts"),
        ("step_time_s", pa.array([[1.0]]), "column step_time_s holds list<"),
        ("mfu", pa.array(["half"]), "column mfu holds string; expected numbers"),
        ("hw", pa.array([{"x": 1}]), "column hw holds struct<x: int64>; expected single values"),
        ("time_compute_s", pa.array(["short"]), "column time_compute_s holds string; expected numbers"),
        ("parallel.tp", pa.array(["eight"]), "column parallel.tp holds 'eight'; expected numbers"),
        ("parallel.dp", pa.array([b"\xff"]), "column parallel.dp holds b'\\xff'; expected numbers"),
        ("parallel.zero", pa.array(["auto"]), None),  # as a table of cases has it
        ("parallel.tp", pa.array(["8"]), None),
        ("hw.num_gpus", pa.array(["all"]), None),
        ("cost_usd", pa.array([float("nan")]), None),
        ("parallel.schedule", pa.array([3]), None),
    ],
)
def test_results_of_another_program_are_ranked_or_refused_by_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, held: pa.Array, said: str | None
) -> None:
    row = {"key": ["0" * 32], "status": ["ok"], "reason": pa.nulls(1, pa.string()), "fits": [True], "step_time_s": [1.0]}
    pq.write_table(pa.table({**row, column: held}), tmp_path / "r.parquet")
    assert guarded(rank.run, [str(tmp_path / "r.parquet")]) == (2 if said else 0)
    shown = capsys.readouterr()
    assert said is None or said in shown.err
    assert "nan" not in shown.out
