"""The same inputs give the same bytes, on any number of workers, threads and seeds of Python's hashes; and files say what made them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from program import done, environment, process, well

import rapid_dse

NOT_RESULTS = ["elapsed_s"]  # how long pricing took
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
GRID = ("-m", "hw=h100,a100", "hw.num_gpus=8", "parallel=all", "parallel.recompute=none", "search.jobs={jobs}", "search.study=s")
SEARCH = ("-m", "hw=h100", "hw.num_gpus=16", "search=optuna", "search.n_trials=25", "search.seed=3", "search.jobs={jobs}", "search.study=s",
          "parallel.tp=1,2,4,8", "parallel.pp=1,2,4")  # fmt: skip


def results(folder: Path, command: tuple[str, ...], threads: int, jobs: int) -> pd.DataFrame:
    """The rows of a study that a process of its own wrote, in the order of their keys."""
    folder.mkdir()
    variables = dict.fromkeys(THREADS, str(threads)) | {"PYTHONHASHSEED": str(threads)}
    well(process(folder, *(part.format(jobs=jobs) for part in command), env=environment() | variables))
    table = pd.read_parquet(folder / "results" / "s").sort_values("key", ignore_index=True)
    return table.drop(columns=NOT_RESULTS)


@pytest.mark.parametrize("command", [GRID, SEARCH], ids=["grid", "optuna"])
def test_results_are_the_same_bytes_on_any_number_of_threads_and_workers(tmp_path: Path, command: tuple[str, ...]) -> None:
    one, other = results(tmp_path / "one", command, threads=1, jobs=1), results(tmp_path / "other", command, threads=2, jobs=2)
    assert len(one) > 10
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_file_says_which_version_code_and_configuration_made_it(tmp_path: Path) -> None:
    done(tmp_path, "-m", "hw=h100", "parallel.tp=1,2", "search.study=s")
    (file,) = (tmp_path / "results" / "s").glob("*.parquet")
    said = b" ".join(key + value for key, value in (pq.read_schema(file).metadata or {}).items()).decode()
    assert rapid_dse.__version__ in said
    assert "num_hidden_layers" in said
    assert set(pd.read_parquet(file)["backend"]) == {"analytical"}
