"""Studies that are killed, that share a storage, that run on a cluster, and on a disk that is full."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from generated import ROOT, portion, scenario
from program import done
from studies import SPACE, Study, essence, priced_exhaustively, started, study, trials, without_times

from rapid_dse.events.backends import price
from rapid_dse.sweep import launch
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.search import answers
from rapid_dse.sweep.search import running as search_run
from rapid_dse.sweep.table import priced_table

FUZZ = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
TRIALS, KILLS = (300, 20) if FUZZ else (150, 3)
LARGE = (*SPACE, "parallel.recompute=all")


def written(path: Path) -> int:
    """Lines of a journal."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a session; what it printed is thrown away."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_study_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path) -> None:
    moments, journal = random.Random(), tmp_path / "study" / "_study.journal"
    for number in range(KILLS):
        lines, pause = written(journal) + moments.choice((1, 12, 30)), moments.uniform(0, 0.1)
        process = started(tmp_path, f"search.n_trials={TRIALS}", space=LARGE)
        deadline = time.monotonic() + 60
        while written(journal) < lines and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(pause)
        assert process.poll() is None, f"ended before kill {number} ({lines} lines, {pause} s): {process.communicate()[1]}"
        kill(process)
    process = started(tmp_path, f"search.n_trials={TRIALS}", space=LARGE)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found, whole = Study(tmp_path / "study", 0, "", ""), study(tmp_path, f"search.n_trials={TRIALS}", space=LARGE, name="whole")
    assert essence(found.trials) == essence(whole.trials)
    assert without_times(found.rows) == without_times(whole.rows)


def test_two_processes_share_a_journal_and_one_is_killed(tmp_path: Path) -> None:
    arguments = (f"search.n_trials={TRIALS}", "search.sampler=random")
    journal = tmp_path / "study" / "_study.journal"
    processes = [started(tmp_path, *arguments, space=LARGE) for _ in range(2)]
    while written(journal) < 40 and all(process.poll() is None for process in processes):
        time.sleep(0.005)
    kill(processes[0])
    _, err = processes[1].communicate(timeout=120)
    assert processes[1].returncode == 0, err
    found = Study(tmp_path / "study", 0, "", "")
    keys = [trial.user_attrs["key"] for trial in found.trials]
    assert len(keys) == TRIALS
    assert len(set(keys)) == TRIALS, "no layout twice"
    expected = priced_exhaustively(tmp_path, LARGE)
    rows = without_times(found.rows)
    assert all(expected[key] == row for key, row in rows.items())
    assert set(keys) <= set(rows)


def test_two_processes_of_brute_force_give_the_grids_set(tmp_path: Path) -> None:
    space = (*SPACE[:-1], "parallel.micro_batch_size=1,2")
    processes = [started(tmp_path, "search.n_trials=100000", "search.sampler=brute_force", space=space) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    found = {t.user_attrs["key"] for t in trials(tmp_path / "study" / "_study.journal")}
    assert found == set(priced_exhaustively(tmp_path, space))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Dask cluster of two workers on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found:
        yield found


def test_a_dask_cluster_of_two_workers_one_of_which_is_killed(cluster: Any, tmp_path: Path) -> None:
    process = started(
        tmp_path, "search.n_trials=90", "search.launcher=dask", f"search.launcher_address={cluster.scheduler_address}", space=LARGE
    )
    journal = tmp_path / "study" / "_study.journal"
    while written(journal) < 40 and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    serial = study(tmp_path, "search.n_trials=90", space=LARGE, name="serial")
    found = Study(tmp_path / "study", 0, "", "")
    assert essence(found.trials) == essence(serial.trials)
    assert without_times(found.rows) == without_times(serial.rows)


def test_a_grid_runs_on_a_dask_cluster_too(cluster: Any, tmp_path: Path) -> None:
    done(tmp_path, "-m", *SPACE, "search.launcher=dask", "search.study=grid", f"search.launcher_address={cluster.scheduler_address}")
    assert without_times(Study(tmp_path / "results" / "grid", 0, "", "").rows) == priced_exhaustively(tmp_path)


FULL_DISK = """
import resource, sys
from rapid_dse.__main__ import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main())
"""


def test_a_full_disk_ends_in_a_clear_line_and_loses_nothing(tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    command = [sys.executable, str(script), "100000", "-m", "search=optuna", "search.study=study", f"search.results_dir={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *SPACE, "search.n_trials=100"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert "what is stored is kept" in done.stderr
    kept = trials(tmp_path / "study" / "_study.journal")
    assert 0 < len(kept) < 100
    found = study(tmp_path, "search.n_trials=100")
    whole = study(tmp_path, "search.n_trials=100", name="whole")
    assert essence(found.trials)[: len(kept)] == essence(kept)
    assert essence(found.trials) == essence(whole.trials)
    assert without_times(found.rows) == without_times(whole.rows)


def test_a_trial_that_kills_its_worker_is_a_row_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(portion: Portion) -> Any:  # nested, so that it goes to the workers by value
        if (portion.layouts.tp == 8).any():
            os._exit(9)
        return priced_table(portion)

    price(scenario(backend__name="hybrid"), portion().layouts.take([0]))  # compiles here what a worker that dies would not end compiling
    monkeypatch.setattr(answers, "priced_table", deadly)
    monkeypatch.setattr(launch, "_RETRIES", 1)
    monkeypatch.setattr(search_run, "_WORTH_WORKERS_SECONDS", 0.0)
    space = ("model=llama3_1_8b", "hw.num_gpus=64", "parallel.tp=2,4,8", "backend=hybrid", "search.prune=false", "search.jobs=2")
    found = study(tmp_path, "search.n_trials=3", "search.sampler=brute_force", space=space)
    assert {row["parallel.tp"]: row["status"] for row in found.rows} == {2: "ok", 4: "ok", 8: "error"}
    assert "its worker process was killed each time" in found.err
    assert found.code == 0
    with pytest.raises(ValueError, match="its worker process was killed each time"):
        study(tmp_path, "search.n_trials=3", "search.fail_fast=true", space=space, name="fast")


def test_jobs_that_differ_in_length_start_with_the_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def watched(portion: Portion) -> Any:
        lengths.append(int(portion.layouts.num_micro_batches[0]))
        return priced_table(portion)

    monkeypatch.setattr(answers, "priced_table", watched)
    space = ("model=llama3_1_8b", "hw.num_gpus=64", "parallel.micro_batch_size=1,2,4,8", "parallel.tp=8", "backend=hybrid")
    study(tmp_path, "search.n_trials=4", "search.prune=false", space=space)
    assert lengths == [128, 64, 32, 16]


def test_a_ray_cluster_one_of_whose_workers_is_killed(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    process = started(tmp_path, "search.n_trials=40", "search.launcher=ray", "search.jobs=2", space=LARGE)
    journal = tmp_path / "study" / "_study.journal"
    while written(journal) < 12 and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    os.kill(next(iter(ray_workers(process.pid))), signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, (ray.__version__, err)
    serial = study(tmp_path, "search.n_trials=40", space=LARGE, name="serial")
    found = Study(tmp_path / "study", 0, "", "")
    assert essence(found.trials) == essence(serial.trials)
    assert without_times(found.rows) == without_times(serial.rows)


def ray_workers(session: int) -> Iterator[int]:
    """Processes of a session that run a pool's jobs; waits for the first."""
    while True:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"ray::PoolActor" in (folder / "cmdline").read_bytes() and os.getsid(int(folder.name)) == session:
                    yield int(folder.name)
        time.sleep(0.05)


def searching(folder: Path, n_trials: int) -> None:
    """A process's share of a study in a database; the process ends with the command's exit code."""
    os._exit(study(folder, f"search.n_trials={n_trials}", f"search.storage=sqlite:///{folder}/a.db", "search.sampler=random").code)


def test_commands_that_come_at_once_make_one_database_and_share_its_trials(tmp_path: Path) -> None:
    optuna.storages.RDBStorage("sqlite://")  # loads what processes would load one by one
    fork = multiprocessing.get_context("fork")
    for n_trials in (12, 24):  # a file that is not there yet, then a study that is
        processes = [fork.Process(target=searching, args=(tmp_path, n_trials)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        found = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path}/a.db")
        keys = [trial.user_attrs["key"] for trial in found.trials]
        assert len(keys) == n_trials, "a total, whoever made them"
        assert len(set(keys)) == n_trials, "no layout twice"
        assert [trial.number for trial in found.trials] == list(range(n_trials))
    assert not list(tmp_path.glob("*.lock"))


def test_values_have_the_names_of_their_columns(tmp_path: Path) -> None:
    objectives = "search.objectives=[-tokens_per_s_per_gpu,peak_memory_bytes]"
    for storage in (f"sqlite:///{tmp_path}/b.db", f"{tmp_path}/b.journal"):
        study(
            tmp_path, "search.n_trials=2", "search.sampler=random", objectives, f"search.storage={storage}", name=Path(storage).suffix[1:]
        )
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(f"{tmp_path}/b.journal"))
    for kept in (f"sqlite:///{tmp_path}/b.db", journal):
        assert optuna.load_study(study_name=None, storage=kept).metric_names == ["tokens_per_s_per_gpu", "peak_memory_bytes"]
