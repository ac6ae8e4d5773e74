"""How fast layouts are priced, and what a command costs from the shell to its table.

    python benchmarks/bench_sweep.py [--quick] [--only PART] [--cases training_cases.csv]

Figures are medians over runs; commands are real subprocesses in an empty folder. ``make bench`` runs it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")  # "on one core" means one

SWEEP_405B = "+sweeps=llama3_1_405b_16384gpus"
MILLION = (SWEEP_405B, "hw=h100,h200,b200", "workload.global_batch_size=1024,2048,4096,8192,16384")


def line(name: str, figure: str, target: str = "") -> None:
    print(f"{name:<64} {figure:>22}   {target}", flush=True)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pricing(repeats: int) -> None:
    """price() with all result columns on one core, on 1/4, 1/2 and all of the 405B layouts: the rate, and whether it is linear."""
    import numpy as np
    import yaml

    from rapid_dse.config import parse
    from rapid_dse.layouts import KEYS, Space, enumerate_layouts
    from rapid_dse.simulate import price

    def option(group: str, name: str) -> object:
        return yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())

    scenario = parse({"hw": option("hw", "h100"), "model": option("model", "llama3_1_405b"), "software": option("software", "megatron_lm")})
    values = dict.fromkeys(KEYS) | {"num_gpus": [16384], "global_batch_size": [2048], "dp": [0], "ep": [1]}
    took = seconds(lambda: enumerate_layouts(Space(values), scenario.model, scenario.workload.seq_len))
    layouts, _ = enumerate_layouts(Space(values), scenario.model, scenario.workload.seq_len)
    line(f"enumerate {len(layouts):,} legal layouts", f"{took:.3f} s")
    layouts = layouts.take(np.random.default_rng(0).permutation(len(layouts)))
    price(scenario, layouts.take(slice(0, 100)))  # imports and first-use tables
    rates = []
    for share in (4, 2, 1):
        part = layouts.take(slice(0, len(layouts) // share))
        took = statistics.median(seconds(lambda part=part: price(scenario, part)) for _ in range(repeats))
        rates.append(len(part) / took)
        line(f"price {len(part):,} layouts, all result columns, one core", f"{rates[-1]:,.0f} layouts/s", "≥ 300,000")
    line("  linear: rate on all over rate on a quarter", f"{rates[-1] / rates[0]:.2f}", "≈ 1")


def command(*arguments: str, module: str = "rapid_dse") -> tuple[float, float, str]:
    """Wall time in s, peak memory of all its processes in bytes, and output of a command in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        peak, output = _watched(process)
        took = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} ended with {process.returncode}:\n{output[-2000:]}")
    return took, peak, output


def _watched(process: subprocess.Popen[bytes]) -> tuple[float, str]:
    """Peak resident memory of all processes of the command's session, sampled, and its output."""
    import threading

    chunks: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: chunks.append(process.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.02)
    reader.join()
    return peak, b"".join(chunks).decode(errors="replace")


def _resident(session: int) -> float:
    """Proportional share of memory of a session's processes, bytes: what they share counts once."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) != session:
                continue
            rollup = (stat.parent / "smaps_rollup").read_text()
        except (OSError, IndexError):
            continue  # it has ended
        total += next(float(row.split()[1]) * 1024 for row in rollup.splitlines() if row.startswith("Pss:"))
    return total


def commands(repeats: int) -> None:
    """A single trial and a small sweep, alternating so that both see the same machine."""
    trial, sweep = [], []
    command("parallel.tp=8")  # warm disk
    for _ in range(repeats):
        trial.append(command("hw=h100", "model=llama3_1_70b", "parallel.tp=8")[0])
        sweep.append(command("-m", "hw=h100", "parallel.tp=1,8,64")[0])
    line("one trial from the shell", f"{statistics.median(trial):.2f} s", "≤ 1.5 s")
    line("-m over 3 values", f"{statistics.median(sweep):.2f} s")
    extra = statistics.median(b - a for a, b in zip(trial, sweep, strict=True))
    line("  above one trial", f"{extra:+.2f} s", "≤ 0.3 s")


def trials(output: str) -> str:
    """How many trials a sweep says that it has."""
    return next(row.split(":")[0] for row in output.splitlines() if " trials: " in row)


def sweeps(quick: bool) -> None:
    """The 405B sweep and a million layouts, from the shell prompt to Parquet and the ranked table."""
    took, peak, output = command("-m", SWEEP_405B)
    line(f"405B on 16,384 GPUs, three chips, {trials(output)}, shell to table", f"{took:.1f} s {peak / 1e9:.2f} GB", "≤ 10 s")
    if not quick:
        took, peak, output = command("-m", *MILLION)
        line(f"405B, 3 chips × 5 batches, {trials(output)}, shell to table", f"{took:.1f} s {peak / 1e9:.2f} GB", "≤ 60 s, ≤ 1.5 GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no million layouts")
    parser.add_argument("--only", choices=("pricing", "commands", "sweeps"), help="one part")
    parser.add_argument("--cases", type=Path, help="a table of cases to evaluate")
    args = parser.parse_args()
    if args.only in (None, "pricing"):
        pricing(3 if args.quick else 7)
    if args.only in (None, "commands"):
        commands(3 if args.quick else 9)
    if args.only in (None, "sweeps"):
        sweeps(args.quick)
    if args.cases:
        took, _, _ = command(str(args.cases.resolve()), "--out", "pred.parquet", module="rapid_dse.evaluate")
        line(f"evaluate {args.cases.name}", f"{took:.1f} s", "≤ 10 s")


if __name__ == "__main__":
    main()
