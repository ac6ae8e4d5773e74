"""Runs the program as a user does, in an empty folder: as a process of its own, or quicker in this one."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
RESULTS = (
    *("key", "status", "reason", "step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "fits", "peak_memory_bytes"),
    *(f"memory_{t}_bytes" for t in ("parameters", "gradients", "optimizer", "activations", "kv_cache", "gathered", "buffers", "framework")),
    *(f"time_{t}_s" for t in ("compute", "tp", "cp", "ep", "pp", "dp", "bubble", "optimizer", "host")),
    *("energy_j", "cost_usd", "backend", "elapsed_s"),
)
KEYS = (
    *("hw", "cluster", "model", "software", "hw.num_gpus", "workload.kind", "workload.precision"),
    *(f"parallel.{k}" for k in ("tp", "cp", "dp", "pp", "ep")),
)
OF_KIND = {
    "training": (
        *("workload.seq_len", "workload.global_batch_size"),
        *(f"parallel.{k}" for k in ("vpp", "zero", "sequence_parallel", "micro_batch_size", "recompute", "schedule")),
    ),
    "inference": (
        *("workload.prompt_len", "workload.decode_len", "workload.concurrency", "parallel.attention_dp", "time_prefill_s"),
        *("ttft_s", "request_latency_s", "requests_per_s", "running_requests", "usd_per_million_tokens"),
    ),
}


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """The checkout on the path, a terminal wide enough that no cell wraps, no colours."""
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}


def start(folder: Path, *arguments: str, module: str = "rapid_dse", python: str = sys.executable, **options: Any) -> subprocess.Popen[str]:
    """The program, running in ``folder``."""
    return subprocess.Popen(
        [python, "-m", module, *arguments],
        cwd=folder,
        env=options.pop("env", environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def process(folder: Path, *arguments: str, module: str = "rapid_dse", **options: Any) -> Ended:
    """The program as a process, ended; it gets 120 s."""
    started = start(folder, *arguments, module=module, **options)
    out, err = started.communicate(timeout=120)
    return Ended(started.returncode, out, err)


IN_A_ROW = """
import runpy, sys
for arguments in {commands!r}:
    sys.argv = list(arguments)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""


def in_a_row(*commands: Sequence[str]) -> str:
    """What a Python process runs in the place of one process each: the commands (a module and its arguments), which must end well."""
    return IN_A_ROW.format(commands=commands)


def run(folder: Path, *arguments: str, module: str = "rapid_dse") -> Ended:
    """The program's ``main`` in this process; what it prints and its exit code are those of ``process``, in a tenth of the time."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [module, *arguments]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            name = f"{module}.__main__" if module == "rapid_dse" else module
            code = importlib.import_module(name).main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue())


def done(folder: Path, *arguments: str, module: str = "rapid_dse") -> Ended:
    """The program in this process, ended well."""
    return well(run(folder, *arguments, module=module))


def well(ended: Ended) -> Ended:
    """The same, if it ended well."""
    assert ended.code == 0, ended.err or ended.out
    assert "Traceback" not in ended.err
    return ended


def rows(folder: Path) -> pd.DataFrame:
    """All rows below ``folder``/results, as pandas reads them."""
    return pd.read_parquet(folder / "results")


def one_line(ended: Ended, code: int = 2) -> str:
    """The one line on stderr of a command that refused."""
    assert ended.code == code, (ended.code, ended.out[-500:], ended.err[-500:])
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    assert "Traceback" not in ended.out + ended.err
    return lines[0]


def check_results(table: pd.DataFrame) -> None:
    """Every fixed column is there, keys are unique, and the terms of each priced row add up."""
    fixed = set(RESULTS + KEYS).union(*(OF_KIND[kind] for kind in set(table["workload.kind"])))
    assert not fixed - set(table.columns), fixed - set(table.columns)
    assert table["key"].is_unique
    assert set(table["status"]) <= {"ok", "oom", "invalid", "error"}
    assert (table.loc[~table["status"].isin(["ok"]), "reason"].fillna("") != "").all()
    priced = table[table["status"].isin(["ok", "oom"])]
    times = priced[[name for name in RESULTS if name.startswith("time_")]].assign(prefill=priced["time_prefill_s"].fillna(0))
    memory = priced[[name for name in RESULTS if name.startswith("memory_")]]
    assert (times >= 0).all().all()
    assert np.allclose(times.sum(axis=1), priced["step_time_s"], rtol=1e-9, atol=0)
    assert np.allclose(memory.sum(axis=1), priced["peak_memory_bytes"], rtol=1e-9, atol=0)
    assert (priced["fits"].astype(bool) == (priced["status"] == "ok")).all()
