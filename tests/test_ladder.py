"""search.refine: the best rows priced again by another backend."""

from __future__ import annotations

import io
from pathlib import Path

import program
import pytest
from generated import ONE, portion
from rich.console import Console
from studies import study

from rapid_dse.config.run import Debug, Search
from rapid_dse.parallel.enumeration import grid
from rapid_dse.sweep import driver, store

BACKENDS = ("hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened")


def _run(folder: Path, backend: str, refine: int) -> tuple[int, str, str]:
    layouts = grid({**ONE, "num_gpus": [16], "global_batch_size": [32], "tp": [1, 2, 4, 8], "pp": [1, 2]})
    out, err = io.StringIO(), io.StringIO()
    search = Search(study="ladder", results_dir=str(folder), refine=refine, refine_backend=backend, jobs=1)  # type: ignore[arg-type]
    code = driver.run([portion(layouts)], search, Debug(), Console(file=out, width=250), Console(file=err, width=250))
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_prices_are_shown_and_stored(backend: str, tmp_path: Path) -> None:
    code, printed, _ = _run(tmp_path, backend, 4)
    assert code == 0
    assert f"priced again by {backend}: " in printed
    assert "pairs changed order" in printed
    assert "analytical step time" in printed
    rows = store.read(tmp_path / "ladder", lambda line: pytest.fail(line))
    refined = [row for row in rows.to_pylist() if row["backend"] == backend]
    assert len(refined) == 4
    assert {row["backend"] for row in rows.to_pylist()} == {"analytical", backend}
    if backend != "full_astrasim_hierarchical":
        assert all(row["step_time_s"] > 0 for row in refined)


def test_what_the_second_backend_refuses_is_said_and_kept(tmp_path: Path) -> None:
    _, printed, notices = _run(tmp_path, "full_astrasim_hierarchical", 8)
    assert "cannot be priced by full_astrasim_hierarchical" in notices
    assert "exactly tp and cp" in notices
    assert "could not be priced" in printed


def test_the_best_trials_of_a_study_are_priced_again_too(tmp_path: Path) -> None:
    found = study(tmp_path, "search.n_trials=8", "search.refine=3", "search.objectives=[-tokens_per_s_per_gpu]")
    assert found.code == 0
    assert "priced again by hybrid: " in found.out
    refined = [row for row in found.rows if row["backend"] == "hybrid"]
    first = sorted((row for row in found.rows if row["backend"] == "analytical" and row["fits"]), key=lambda row: row["step_time_s"])
    assert len(found.trials) == 8, "they are rows, not trials"
    layout = ("parallel.tp", "parallel.pp", "parallel.zero", "parallel.micro_batch_size")
    assert {tuple(row[key] for key in layout) for row in refined} == {tuple(row[key] for key in layout) for row in first[:3]}


def test_nothing_is_refined_unless_asked_for(tmp_path: Path) -> None:
    _, printed, _ = _run(tmp_path, "hybrid", 0)
    assert "priced again" not in printed


def test_systems_of_engines_are_priced_again_too(tmp_path: Path) -> None:
    backend = "full_astrasim_flattened"
    out = program.done(
        tmp_path, "-m", "workload=inference", "model=llama3_1_8b", "model.num_hidden_layers=4", "hw.num_gpus=4", "parallel.tp=1,2,4",
        "workload.concurrency=16", "search.refine=2", f"search.refine_backend={backend}", "search.study=s", "search.jobs=1",
    ).out  # fmt: skip
    assert f"priced again by {backend}: " in out
    rows = store.read(tmp_path / "results" / "s", lambda line: pytest.fail(line)).to_pylist()
    assert sorted(row["backend"] for row in rows) == sorted(["analytical"] * 3 + [backend] * 2)
    assert all(row["status"] == "ok" and row["tpot_s"] > 0 for row in rows)
