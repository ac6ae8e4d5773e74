"""Speed and memory of sweeps, printed: ``make bench``, or ``python benchmarks/bench_sweep.py --only pricing,million``."""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rapid_dse.events.backends import price
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.portion import Portion
from rapid_dse.sweep.space import plan
from rapid_dse.sweep.table import priced_table

ROOT = Path(__file__).parent.parent
LARGE = "+sweeps=llama3_1_405b_16384gpus"
# Whole spaces of models whose layers are of one kind, of experts, and of two kinds (dense first, then experts), on one chip.
SPACES = {
    "dense": ("hw=h100", "model=llama3_1_70b", "hw.num_gpus=512", "parallel=all"),
    "experts": ("hw=h100", "model=mixtral_8x7b", "hw.num_gpus=128", "software=nemo", "parallel=all"),
    "dense and experts": ("hw=h800", "model=deepseek_v3", "hw.num_gpus=2048", "software=nemo", "parallel=all"),
}
# Engines that are served under every load up to some thousand requests at a time, so that no row is another's.
SERVED = {
    "dense": ("hw=h100", "model=llama3_1_70b", "hw.num_gpus=8", "parallel.tp=all", "parallel.pp=all", "workload.precision=fp8"),
    "experts": ("hw=h200", "model=deepseek_v3", "hw.num_gpus=32", "software=sglang", "parallel.tp=all", "parallel.attention_dp=all",
                "parallel.ep=all", "workload.precision=fp8"),
}  # fmt: skip
MOST_REQUESTS = 3000
REPEATS = 5


def portion_405b() -> Portion:
    """The layouts of Llama 3.1 405B on 16,384 H100."""
    return plan(read([LARGE])).portions[0]


def repeated(portion: Portion, n_layouts: int) -> Portion:
    """The portion's layouts over and over, ``n_layouts`` of them."""
    rows = np.arange(n_layouts) % len(portion.layouts)
    return replace(portion, layouts=portion.layouts.take(rows), rule=portion.rule[rows])


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Of this process's CPU, which other programs on the machine change less than the time on the wall."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def bench_pricing() -> None:
    """Layouts a CPU second, with all columns and keys; growth; what a row costs beside its price."""
    portion = portion_405b()
    priced_table(repeated(portion, 1000))
    for n_layouts in (1_000, 10_000, 100_000, 300_000):
        many = repeated(portion, n_layouts)
        alone = median_seconds(lambda many=many: price(many.scenario, many.layouts))
        table = median_seconds(lambda many=many: priced_table(many))
        print(f"pricing {n_layouts:>9,} layouts: {n_layouts / alone:>11,.0f}/s; with all columns and keys {n_layouts / table:>11,.0f}/s")


def bench_spaces() -> None:
    """Layouts a CPU second of whole spaces, none of whose rows is another's; and what enumerating them takes."""
    for name, overrides in SPACES.items():
        start = time.perf_counter()
        portion = plan(read([*overrides, "workload.global_batch_size=1024", "workload.seq_len=4096"])).portions[0]
        listed, n_layouts = time.perf_counter() - start, len(portion.layouts)
        price(portion.scenario, portion.layouts)
        alone = median_seconds(lambda portion=portion: price(portion.scenario, portion.layouts), 3)
        table = median_seconds(lambda portion=portion: priced_table(portion), 3)
        print(
            f"the whole space, {name}: {n_layouts:,} layouts listed in {listed:.1f} s, priced {n_layouts / alone:,.0f}/s, "
            f"with all columns and keys {n_layouts / table:,.0f}/s"
        )


def bench_serving() -> None:
    """Engines under distinct loads a CPU second."""
    for name, overrides in SERVED.items():
        found = plan(read([*overrides, "workload=inference", f"workload.concurrency=range(1,{MOST_REQUESTS})"])).portions[0]
        layouts = found.layouts.take(np.flatnonzero(found.rule < 0)[:50_000])
        price(found.scenario, layouts.take(np.arange(100)))
        seconds = median_seconds(lambda found=found, layouts=layouts: price(found.scenario, layouts))
        print(f"serving, {name}: {len(layouts):,} layouts and loads, priced {len(layouts) / seconds:,.0f}/s")


def bench_distinct() -> None:
    """The first pricing in a process: nothing is warm yet."""
    code = (
        "import time\n"
        "from rapid_dse.events.backends import price\n"
        "from rapid_dse.sweep.overrides import read\n"
        "from rapid_dse.sweep.space import plan\n"
        f"portion = plan(read([{LARGE!r}])).portions[0]\n"
        "start = time.perf_counter()\n"
        "price(portion.scenario, portion.layouts)\n"
        "print(time.perf_counter() - start, len(portion.layouts))\n"
    )
    found = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout for _ in range(3)]
    seconds = statistics.median(float(text.split()[0]) for text in found)
    print(f"first pricing of {int(found[0].split()[1]):,} layouts in a process: {seconds:.2f} s")


def shell(arguments: list[str], folder: Path) -> tuple[float, str]:
    """Wall time of a command from the shell, s, and what it printed."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "rapid_dse", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, done.stdout


def bench_shell() -> None:
    """One trial, and -m over three values, from the shell."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trial = statistics.median(shell(["hw=h100", "parallel.tp=8"], folder)[0] for _ in range(REPEATS))
        sweeps = [shell(["-m", "hw=h100", "parallel.tp=1,8,64", f"search.study=s{run}"], folder)[0] for run in range(REPEATS)]
        sweep = statistics.median(sweeps)
    print(f"one trial: {trial:.2f} s; -m over three values: {sweep:.2f} s ({sweep - trial:+.2f} s)")


def bench_sweep() -> None:
    """The 405B sweep from the shell to its table, new and read again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, study in (("new", "a"), ("new", "b"), ("new", "c"), ("again", "c")):
            seconds, text = shell(["-m", LARGE, f"search.study={study}"], folder)
            trials = re.search(r"([\d,]+) trials", text)
            size = sum(path.stat().st_size for path in (folder / "results" / study).iterdir()) / 1e6
            print(f"405B sweep, {what}: {trials.group(1) if trials else '?'} trials in {seconds:.2f} s, {size:.1f} MB stored")


def bench_million() -> None:
    """A million layouts from the shell: wall time and the peak of this process's children, each alone."""
    prices = ",".join(f"{1 + step / 10:.1f}" for step in range(5))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for jobs in (1, 2):
            arguments = ["-m", LARGE, f"hw.price={prices}", f"search.study=jobs{jobs}", f"search.jobs={jobs}"]
            peak = _Peak()
            with peak:
                seconds, text = shell(arguments, folder)
            trials = re.search(r"([\d,]+) trials", text)
            shown = trials.group(1) if trials else "?"
            print(
                f"a million layouts, {jobs} process(es): {shown} trials in {seconds:.1f} s; peak of all processes {peak.megabytes:,.0f} MB"
            )


class _Peak:
    """The most memory (resident, less what is shared) that this process's descendants held together, sampled; Linux alone."""

    def __enter__(self) -> _Peak:
        import threading

        self.megabytes, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            self.megabytes = max(self.megabytes, sum(_private_megabytes(process) for process in _descendants(os.getpid())))


def _descendants(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
    found, waiting = [], [root]
    while waiting:
        parent = waiting.pop()
        children = [process for process, above in parents.items() if above == parent]
        found += children
        waiting += children
    return found


def _private_megabytes(process: int) -> float:
    try:
        pages = (Path("/proc") / str(process) / "statm").read_text().split()
    except OSError:
        return 0.0
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize() / 1e6


BENCHES = {
    "pricing": bench_pricing,
    "spaces": bench_spaces,
    "serving": bench_serving,
    "first": bench_distinct,
    "shell": bench_shell,
    "sweep": bench_sweep,
    "million": bench_million,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(BENCHES), help=f"some of {','.join(BENCHES)}")
    for name in parser.parse_args().only.split(","):
        BENCHES[name]()


if __name__ == "__main__":
    main()
