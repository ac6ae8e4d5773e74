"""Small Optuna studies for tests: in this process, or in one of their own that a test may kill."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from generated import ROOT
from rich.console import Console

from rapid_dse.sweep import driver, store
from rapid_dse.sweep.compose import hydra_ready
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.search import running as search
from rapid_dse.sweep.space import axes, plan

SPACE = ("model=llama3_1_8b", "hw.num_gpus=64", "parallel.tp=all", "parallel.pp=all", "parallel.zero=all", "parallel.micro_batch_size=all")


@dataclass
class Study:
    """What a run left and printed."""

    folder: Path
    code: int
    out: str
    err: str

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return trials(self.folder / "_study.journal")

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = store.read(self.folder, print).to_pylist()
        return found


def study(folder: Path, *arguments: str, space: tuple[str, ...] = SPACE, name: str = "study") -> Study:
    """Runs a study in this process."""
    out, err = io.StringIO(), io.StringIO()
    given = read(["search=optuna", f"search.study={name}", f"search.results_dir={folder}", *space, *arguments])
    with hydra_ready():
        code = search.run(axes(given), Console(file=out, width=200), Console(file=err, width=200))
    return Study(folder / name, code, out.getvalue(), err.getvalue())


def priced_exhaustively(folder: Path, space: tuple[str, ...] = SPACE) -> dict[str, dict[str, Any]]:
    """The rows of a grid over the whole space, by key, without what they took."""
    planned = plan(read([*space, "search.study=whole_grid", f"search.results_dir={folder}"]))
    assert driver.run(planned.portions, planned.search, planned.debug) == 0
    return without_times(store.read(folder / "whole_grid", print).to_pylist())


def started(folder: Path, *arguments: str, space: tuple[str, ...] = SPACE, name: str = "study") -> subprocess.Popen[str]:
    """Starts a study in a process of its own, in a session of its own."""
    given = ["search=optuna", f"search.study={name}", f"search.results_dir={folder}", *space, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rapid_dse", "-m", *given]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def trials(path: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials of a journal's only study, as any Optuna program reads them."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage).trials


def essence(found: list[optuna.trial.FrozenTrial]) -> list[Any]:
    """What two equal studies have in common: all but times."""
    return [
        (t.number, t.state, t.params, t.values, t.constraints, {k: v for k, v in t.user_attrs.items() if k != "elapsed_s"}) for t in found
    ]


def without_times(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by key, without what they took."""
    found = {row["key"]: {name: value for name, value in row.items() if name != "elapsed_s"} for row in rows}
    assert len(found) == len(rows), "no row twice"
    return found
