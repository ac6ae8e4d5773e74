"""Studies at their largest, each within its bound: ``make load``.

Ten million layouts in 2 GB; a million rows ranked in 3 s of the processor; a thousand studies in one folder; a long search whose memory
does not grow; as many processes as three machines have on one study. Seconds are of this program's processors, which other programs on
the machine change less than the time on the wall.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGE = "+sweeps=llama3_1_405b_16384gpus"
SPACE = ("model=llama3_1_8b", "hw.num_gpus=64", "parallel.tp=all", "parallel.pp=all", "parallel.zero=all", "parallel.micro_batch_size=all")


@dataclass(frozen=True)
class Bound:
    """What was measured, and what it may be at most."""

    name: str
    found: float
    most: float
    unit: str

    def __str__(self) -> str:
        return f"{self.name:62}{self.found:10,.2f} {self.unit:5} (at most {self.most:,g}){'' if self.found <= self.most else '  ABOVE'}"


def command(folder: Path, *arguments: str, module: str = "rapid_dse") -> str:
    """What a command printed; ``CalledProcessError`` where it failed."""
    done = _started(folder, *arguments, module=module)
    out, err = done.communicate()
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.returncode}: {err[-500:]}")
    return out


def _started(folder: Path, *arguments: str, module: str = "rapid_dse") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class Watch:
    """Memory (resident) of this process's descendants together, sampled; Linux alone."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    def __enter__(self) -> Watch:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            self.samples.append(sum(map(_gigabytes, _descendants(os.getpid()))))

    @property
    def peak(self) -> float:
        return max(self.samples, default=0.0)


def _gigabytes(process: int) -> float:
    try:
        pages = (Path(f"/proc/{process}") / "statm").read_text().split()
    except OSError:
        return 0.0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 1e9


def _descendants(root: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for parent in found:
        found += [process for process, above in parents.items() if above == parent]
    return found[1:]


def processor_seconds(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ten_million(folder: Path) -> list[Bound]:
    """Ten million layouts priced, stored and ranked."""
    prices = ",".join(f"{1 + step / 100:.2f}" for step in range(86))
    with Watch() as watch:
        out = command(folder, "-m", LARGE, f"hw.price={prices}", "search.study=ten", "search.jobs=2")
    rows = re.search(r"([\d,]+) trials", out)
    count = float(rows[1].replace(",", "")) if rows else 0.0
    print(f"{count:,.0f} layouts, {sum(path.stat().st_size for path in (folder / 'results/ten').iterdir()) / 1e9:.2f} GB on the disk")
    return [
        Bound("ten million layouts: memory of all processes", watch.peak, 2, "GB"),
        Bound("layouts short of ten million", 1e7 - count, 0, ""),
    ]


def a_million(folder: Path) -> list[Bound]:
    """A million rows ranked."""
    prices = ",".join(f"{1 + step / 10:.1f}" for step in range(9))
    command(folder, "-m", LARGE, f"hw.price={prices}", "search.study=million")
    seconds = min(processor_seconds(lambda: command(folder, "results/million", module="rapid_dse.rank")) for _ in range(3))
    rows = re.search(r"([\d,]+) trials", command(folder, "results/million", module="rapid_dse.rank"))
    print(f"{rows[1] if rows else '?'} rows ranked")
    return [Bound("a million rows ranked", seconds, 3, "s")]


def a_thousand(folder: Path) -> list[Bound]:
    """A thousand studies in one folder, read as one and each by itself."""
    command(folder, "-m", "model=llama3_1_8b", "parallel.tp=1,2,4", "search.study=s")
    files = list((folder / "results/s").glob("*.parquet"))
    for number in range(999):
        place = folder / "results" / f"s{number}"
        place.mkdir()
        for file in files:
            (place / file.name).write_bytes(file.read_bytes())
    whole = processor_seconds(lambda: command(folder, "results", module="rapid_dse.rank"))
    one = processor_seconds(lambda: command(folder, "-m", "model=llama3_1_8b", "parallel.tp=1,2,4,8", "search.study=s500"))
    return [Bound("a thousand studies ranked as one", whole, 10, "s"), Bound("a sweep beside a thousand studies", one, 5, "s")]


def a_day(folder: Path, trials: int) -> list[Bound]:
    """A search of as many trials as a day of simulations has, by closed forms; its memory over the second half."""
    space = (*SPACE, "parallel.recompute=all", "hw.memory.bandwidth=interval(1e12,8e12)")
    search = ("search=optuna", f"search.n_trials={trials}")
    with Watch() as watch:
        command(folder, "-m", *search, "search.sampler=random", "search.batch=100", "search.study=day", "search.jobs=1", *space)
    half = watch.samples[len(watch.samples) // 2 :]
    quarter = max(1, len(half) // 4)
    grown = (sum(half[-quarter:]) - sum(half[:quarter])) / quarter
    print(f"{trials:,} trials, {watch.peak:.2f} GB at most")
    each = grown / (trials * 0.375) * 1e6
    return [
        Bound("a day of trials: memory of a trial, which samplers learn from", each, 3, "kB"),
        Bound("a day of trials: memory", watch.peak, 2, "GB"),
    ]


def three_machines(folder: Path, processes: int = 12, trials: int = 600) -> list[Bound]:
    """Processes that share a study by its journal: as many trials as were asked for, each layout once."""
    wide = (*SPACE, "parallel.recompute=all", "parallel.sequence_parallel=true,false")
    given = ("-m", "search=optuna", f"search.n_trials={trials}", "search.sampler=random", "search.study=shared", "search.jobs=1", *wide)
    began = time.perf_counter()
    started = [_started(folder, *given) for _ in range(processes)]
    ended = [(each.communicate()[1], each.returncode) for each in started]
    failed = [err[-300:] for err, code in ended if code]
    print(f"{processes} processes: {trials} trials in {time.perf_counter() - began:.0f} s", *failed, sep="\n")
    check = (
        "import sys, optuna; from pathlib import Path; from rapid_dse.sweep.search.journal import Journal\n"
        "optuna.logging.set_verbosity(optuna.logging.ERROR)\n"
        "storage = optuna.storages.JournalStorage(Journal(Path('results/shared/_study.journal')))\n"
        "keys = [trial.user_attrs['key'] for trial in optuna.load_study(study_name=None, storage=storage).trials]\n"
        "print(len(keys), len(set(keys)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", check], cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout
    count, distinct = map(int, out.split())
    return [
        Bound("three machines on one study: processes that failed", len(failed), 0, ""),
        Bound("three machines on one study: trials lost or doubled", abs(trials - count) + count - distinct, 0, ""),
    ]


def main() -> int:
    parts: dict[str, Callable[[Path], list[Bound]]] = {
        "ten_million": ten_million,
        "a_million": a_million,
        "a_thousand": a_thousand,
        "a_day": lambda folder: a_day(folder, options.trials),
        "three_machines": three_machines,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(parts), help="parts, with commas between them")
    parser.add_argument("--trials", type=int, default=20_000, help="of a day's search")
    options = parser.parse_args()
    found: list[Bound] = []
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            found += parts[name](Path(folder))
    print(*found, sep="\n")
    return int(any(bound.found > bound.most for bound in found))


if __name__ == "__main__":
    sys.exit(main())
