"""What the search must reach: Optuna's overhead a trial, how soon TPE finds the best, NSGA-II's front, two workers against one.

python benchmarks/bench_search.py [overhead] [tpe] [front] [workers]     (all without a name)
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from rapid_dse.events.backends import price
from rapid_dse.sweep import store
from rapid_dse.sweep.compose import hydra_ready
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.search import answers
from rapid_dse.sweep.search import running as search
from rapid_dse.sweep.space import axes, plan

SWEEP = "+sweeps=gpt3_175b_1024xa100"


def study(folder: Path, name: str, *arguments: str) -> list[dict[str, Any]]:
    """Runs a study; its rows."""
    given = read([SWEEP, "search=optuna", f"search.results_dir={folder}", f"search.study={name}", *arguments])
    with hydra_ready():
        search.run(axes(given), Console(file=io.StringIO()), Console(file=io.StringIO()))
    rows: list[dict[str, Any]] = store.read(folder / name, print).to_pylist()
    return rows


def overhead(folder: Path) -> None:
    """Milliseconds a trial of a study of 1,000, pricing left out, journal and rows included."""
    spent, plain = [0.0, 0.0], answers.priced_table

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def timed(portion: Portion) -> Any:
        start = now()
        try:
            return plain(portion)
        finally:
            spent[:] = [total + end - begin for total, begin, end in zip(spent, start, now(), strict=True)]

    answers.priced_table = timed  # type: ignore[assignment]
    for sampler, objectives, limit in (
        ("tpe", "step_time_s", 15),
        ("random", "step_time_s", 10),
        ("nsga2", "step_time_s,peak_memory_bytes", 10),
    ):
        spent[:], start = [0.0, 0.0], now()
        study(folder, f"overhead_{sampler}", "search.n_trials=1000", f"search.sampler={sampler}", f"search.objectives=[{objectives}]")
        wall, busy = (end - begin - priced for end, begin, priced in zip(now(), start, spent, strict=True))
        print(
            f"overhead of {sampler}, 1,000 trials, journal: {wall:.1f} ms a trial (at most {limit}), {busy:.1f} of it on the processor",
            flush=True,
        )
    answers.priced_table = plain


def exhaustive() -> tuple[Any, Any]:
    """Every layout, priced: fits and results."""
    portion = plan(read([SWEEP])).portions[0]
    return portion, price(portion.scenario, portion.layouts)


def tpe(folder: Path) -> None:
    """Seeds of ten in which TPE comes within 2 % of the best within 200 trials, nothing enqueued."""
    _, every = exhaustive()
    best, gaps = every.step_time_s[every.fits].min(), []
    for seed in range(10):
        rows = study(folder, f"tpe_{seed}", "search.n_trials=200", "search.enqueue=0", f"search.seed={seed}")
        gaps.append(min(row["step_time_s"] for row in rows if row["fits"]) / best - 1)
    within = sum(gap <= 0.02 for gap in gaps)
    print(
        f"TPE within 2 % of the best of {len(every):,} in 200 trials: {within} of 10 seeds (at least 9); worst {max(gaps):.1%}", flush=True
    )


def front(folder: Path) -> None:
    """NSGA-II's share of the exhaustive hypervolume: step time against memory, among what fits."""
    portion, every = exhaustive()
    fits = every.fits
    reference = np.array([every.step_time_s[fits].max(), portion.scenario.hw.memory.capacity])
    whole = hypervolume(np.stack([every.step_time_s[fits], every.peak_memory_bytes[fits]], axis=1), reference)
    shares = []
    for seed in range(3):
        options = ("search.sampler=nsga2", "search.objectives=[step_time_s,peak_memory_bytes]", "search.enqueue=0", f"search.seed={seed}")
        rows = study(folder, f"front_{seed}", "search.n_trials=1000", *options)
        points = np.array([[row["step_time_s"], row["peak_memory_bytes"]] for row in rows if row["fits"]])
        shares.append(hypervolume(points, reference) / whole)
    text = ", ".join(f"{share:.2%}" for share in shares)
    print(f"NSGA-II's hypervolume after 1,000 trials: {text} of the exhaustive one, a seed each (at least 95 %)", flush=True)


def hypervolume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Area between the points' front and the reference, two objectives, less is better."""
    area, lowest = 0.0, reference[1]
    for first, second in points[np.argsort(points[:, 0], kind="stable")]:
        if first < reference[0] and second < lowest:
            area += (reference[0] - first) * (lowest - second)
            lowest = second
    return float(area)


def workers(folder: Path) -> None:
    """A study of 200 flattened trials, 0.01 to 5 s each, with two workers and with one."""
    options = ("backend=full_astrasim_flattened", "hw.num_gpus=32", "workload.global_batch_size=32", "search.sampler=random")
    took = {}
    for jobs in (1, 2):
        start = time.perf_counter()
        study(folder, f"workers_{jobs}", *options, "search.n_trials=200", "search.batch=20", "search.prune=false", f"search.jobs={jobs}")
        took[jobs] = time.perf_counter() - start
    busy = f"{os.getloadavg()[0]:.1f} processes wanted the {os.cpu_count()} cores"
    print(f"two workers, 200 flattened trials: {took[1] / took[2]:.2f} times as fast as one (at least 1.7; {busy})", flush=True)


if __name__ == "__main__":
    every: dict[str, Callable[[Path], None]] = {"overhead": overhead, "tpe": tpe, "front": front, "workers": workers}
    os.environ["RAPID_ASTRA_CACHE_MODE"] = "NO_CACHE"
    with tempfile.TemporaryDirectory() as scratch:
        for chosen in sys.argv[1:] or list(every):
            every[chosen](Path(scratch))
