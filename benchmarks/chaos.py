"""Kills, full disks, flipped bits and races, done to real studies: ``python benchmarks/chaos.py`` (a quarter of an hour on two cores).

Each round ends in a study that is compared, row by row, with one that nothing has happened to. The table says what was tried, and how
often a row was lost, doubled, or wrong, or damage was not seen. ``--share 0.05`` does a twentieth of all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import optuna  # noqa: E402
from rich.console import Console  # noqa: E402

from rapid_dse.command import guarded  # noqa: E402
from rapid_dse.sweep import driver, store, study_folder  # noqa: E402
from rapid_dse.sweep.compose import hydra_ready  # noqa: E402
from rapid_dse.sweep.overrides import read  # noqa: E402
from rapid_dse.sweep.search import running  # noqa: E402
from rapid_dse.sweep.search.journal import Journal  # noqa: E402
from rapid_dse.sweep.space import axes, plan  # noqa: E402

# A grid of 12 files, and studies of Optuna: small enough to end within a second, so that a kill hits any part of them.
GRID = (
    *("hw=h100,a100", "model=llama3_1_8b,llama2_7b", "software=megatron_lm,nemo,torchtitan"),
    *("hw.num_gpus=16", "workload.global_batch_size=32", "parallel.tp=all", "parallel.pp=all", "parallel.zero=all"),
)
SPACE = ("model=llama3_1_8b", "hw.num_gpus=64", "parallel.tp=all", "parallel.pp=all", "parallel.zero=all", "parallel.micro_batch_size=all")
SEARCH = ("search=optuna", "search.n_trials=120", "search.sampler=random", "search.batch=5", *SPACE)
COUNTS = ("lost", "doubled", "wrong", "unseen")
Rows = dict[str, dict[str, Any]]


@dataclass
class Outcome:
    """What a kind of fault came to: how often it was tried, and what was found; ``said`` explains the latter."""

    name: str
    tried: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    unseen: int = 0
    seconds: float = 0.0
    note: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return sum(getattr(self, name) for name in COUNTS)

    def compare(self, folder: Path, expected: Rows, whole: bool = True) -> None:
        """Counts what of the expected rows a study's folder lacks, has twice, or has otherwise."""
        keys: list[str] = []
        found: Rows = {}
        for path in sorted(folder.glob(f"*{store.SUFFIX}")):
            try:
                rows = store.read_own(path).to_pylist()
            except store.Damaged as error:
                self._say("unseen", str(error))
                continue
            keys += [row["key"] for row in rows]
            found |= {row["key"]: _plain(row) for row in rows}
        read = store.read(folder, print).num_rows if found else 0  # of rows that stand in two files a reader shows one
        if read != len(found):
            self._say("doubled", f"{folder.name}: {read - len(found)} rows twice")
        for key, row in found.items():
            if key not in expected or expected[key] != row:
                self._say("wrong", f"{folder.name}: {key}: {_difference(expected.get(key), row)}")
        for key in expected.keys() - found.keys() if whole else ():
            self._say("lost", f"{folder.name}: {key}")

    def trials(self, folder: Path, count: int) -> None:
        """Counts trials that a study lacks or has twice."""
        storage = optuna.storages.JournalStorage(Journal(folder / "_study.journal"))
        found = optuna.load_study(study_name=None, storage=storage).trials
        keys = [trial.user_attrs["key"] for trial in found]
        if len(keys) < count:
            self._say("lost", f"{folder.name}: {count - len(keys)} of {count} trials")
        if len(keys) > count or len(set(keys)) < len(keys):
            self._say("doubled", f"{folder.name}: {len(keys)} trials of {len(set(keys))} layouts, {count} were asked for")

    def _say(self, kind: str, text: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.said.append(f"{self.name}: {kind}: {text}")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "elapsed_s" and value is not None}


def _difference(expected: dict[str, Any] | None, row: dict[str, Any]) -> str:
    if expected is None:
        return "no such row"
    return ", ".join(f"{name} {expected.get(name)} -> {row.get(name)}" for name in {*expected, *row} if expected.get(name) != row.get(name))


# Running studies ---------------------------------------------------------------------------------------------------------------------


def grid(results: Path, *more: str) -> int:
    """A grid in this process; its exit code."""
    planned = plan(read([*GRID, "search.study=s", f"search.results_dir={results}", "search.jobs=1", *more]))
    return driver.run(planned.portions, planned.search, planned.debug, _nowhere(), _nowhere())


def search(results: Path, *more: str) -> int:
    """A study of Optuna in this process; its exit code."""
    given = read([*SEARCH, "search.study=s", f"search.results_dir={results}", "search.jobs=1", *more])
    with hydra_ready():
        return running.run(axes(given), _nowhere(), _nowhere())


def _nowhere() -> Console:
    return Console(file=io.StringIO(), width=200)


def forked(work: Callable[[], int]) -> int:
    """The number of a child that does the work: it has all modules, so that all of its time is the study's."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = guarded(lambda _: work(), [])
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """A child's exit code; minus the signal's number where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rows_of(folder: Path) -> Rows:
    return {row["key"]: _plain(row) for row in store.read(folder, print).to_pylist()}


@contextmanager
def fresh(base: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Kills -------------------------------------------------------------------------------------------------------------------------------


def kills(base: Path, rng: random.Random, count: int, study: Callable[..., int], expected: Rows, trials: int = 0) -> Outcome:
    """SIGKILL at random moments, the same command again and again, until the study is whole; then the next one."""
    found = Outcome(f"kills of a {'search' if trials else 'grid'}")
    while found.tried < count:
        whole = _seconds(base, study)  # anew: a machine that was busy is idle now, where most moments would come after the end
        with fresh(base) as results:
            while found.tried < count and _killed(lambda r=results: study(r), rng.uniform(0, whole), signal.SIGKILL):  # type: ignore[misc]
                found.tried += 1
                if (results / "s").is_dir():
                    found.compare(results / "s", expected, whole=False)
            if (code := ended(forked(lambda r=results: study(r)))) != 0:  # type: ignore[misc]
                found._say("lost", f"the last run ended with {code}")
            found.compare(results / "s", expected)
            if trials:
                found.trials(results / "s", trials)
    return found


def _seconds(base: Path, study: Callable[..., int]) -> float:
    with fresh(base) as results:
        began = time.perf_counter()
        ended(forked(lambda: study(results)))
        return time.perf_counter() - began


def _killed(work: Callable[[], int], after: float, number: signal.Signals) -> bool:
    """Whether the signal came before the work was done."""
    child = forked(work)
    _wait(child, after)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)
    return ended(child) not in (0, 1)


def _wait(child: int, seconds: float) -> None:
    """Waits so long, or until the child has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def ends(base: Path, rng: random.Random, count: int, expected: Rows) -> Outcome:
    """Ctrl-C, SIGTERM and SIGHUP at random moments: 130, 143, 129, and rows that are whole."""
    found, codes = Outcome("signals that end"), {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    while found.tried < count:
        whole = _seconds(base, grid)
        with fresh(base) as results:
            number = rng.choice(list(codes))
            child = forked(lambda r=results: grid(r))  # type: ignore[misc]
            _wait(child, rng.uniform(min(0.05, whole / 2), whole))
            os.kill(child, number)
            found.tried += 1
            if (code := ended(child)) not in (0, codes[number], -number):  # the signal may come before it is answered
                found._say("wrong", f"{number.name} ended with {code}")
            if list(results.glob(f"s/.*{study_folder.PART}")) and code == codes[number]:
                found._say("lost", f"{number.name} left half a file")
            ended(forked(lambda r=results: grid(r)))  # type: ignore[misc]
            found.compare(results / "s", expected)
    return found


def workers(base: Path, rng: random.Random, count: int, expected: Rows) -> Outcome:
    """A driver with workers of its own, as a user starts it: the driver or one of its workers is killed."""
    found = Outcome("kills of drivers and workers")
    command = [sys.executable, "-m", "rapid_dse", "-m", *GRID, "search.study=s", "search.launcher=loky", "search.jobs=2", "backend=hybrid"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with fresh(base) as results:
        while found.tried < count:
            started = subprocess.Popen(
                command, cwd=results, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
            time.sleep(rng.uniform(0.3, 6))
            session = _session(started.pid)
            victim = rng.choice(session) if session and rng.random() < 0.7 else started.pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            found.tried += 1
            try:
                _, err = started.communicate(timeout=90)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                _, err = started.communicate()
                found._say("lost", "the driver hangs after a worker was killed")
            # joblib's resource tracker, a process of its own, may be the one that is killed: the next one tells of names that it never had
            told = b"Traceback" in err and b"resource_tracker" not in err and b"KeyError: '/loky-" not in err
            if started.returncode not in (0, 2, -signal.SIGKILL) or told:
                found._say("wrong", f"ended with {started.returncode}: {err[-300:]!r}")
            if _gone(started.pid):
                found._say("unseen", "workers outlive their driver by 10 s")
        last = subprocess.run(command, cwd=results, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if last.returncode != 0:
            found._say("lost", f"the last run ended with {last.returncode}: {last.stderr[-300:]!r}")
        found.compare(results / "results/s", expected)
    return found


def _session(leader: int) -> list[int]:
    """Processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, number, *_ = (path / "stat").read_text().rpartition(")")[2].split()
            if int(number) == leader and state != "Z":
                found.append(int(path.name))
    return found


def _gone(leader: int) -> bool:
    """Whether processes of a session are still there after 10 s; they are ended then."""
    deadline = time.monotonic() + 10
    while _session(leader) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = _session(leader)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return bool(left)


# Disks -------------------------------------------------------------------------------------------------------------------------------


def disks(base: Path, rng: random.Random, count: int, expected: Rows, found_by_search: Rows, trials: int) -> Outcome:
    """A disk that fills up at a random place, is made larger, and fills up again."""
    found = Outcome("full disks")
    for at in range(count):
        study, rows = (search, found_by_search) if at % 3 == 2 else (grid, expected)
        with fresh(base) as place, _disk(place) as resized:
            if resized is None:
                found.note = "this user may not mount a disk"
                return found
            size, code = 0, 2
            while code != 0 and size < 64 << 20:
                size += rng.randrange(16 << 10, 400 << 10)
                resized(size)
                code = ended(forked(lambda r=place, s=study: s(r)))  # type: ignore[misc]
                found.tried += 1
                if code not in (0, 2):
                    found._say("wrong", f"a disk of {size:,} bytes: ended with {code}")
                if (place / "s").is_dir():
                    found.compare(place / "s", rows, whole=code == 0)
            if code != 0:
                found._say("lost", f"a disk of {size:,} bytes: ended with {code}")
            elif study is search:
                found.trials(place / "s", trials)
    return found


@contextmanager
def _disk(place: Path) -> Iterator[Callable[[int], None] | None]:
    """A disk in memory at this place, and what changes its size; None where it cannot be mounted."""

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True, capture_output=True)

    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield resize
    finally:
        subprocess.run(["umount", place], check=True, capture_output=True)


# Bits --------------------------------------------------------------------------------------------------------------------------------


def flipped(content: bytes, bit: int) -> bytes:
    harmed = bytearray(content)
    harmed[bit // 8] ^= 1 << bit % 8
    return bytes(harmed)


def bits_of_tables(base: Path, rng: random.Random, count: int) -> Outcome:
    """A bit of a stored table: its file is damaged, or holds what it held."""
    found = Outcome("bits of tables")
    with fresh(base) as results:
        grid(results)
        paths = sorted((results / "s").glob(f"*{store.SUFFIX}"))
        wholes = {path: (path.read_bytes(), store.read_own(path)) for path in paths}
        place = results / "flipped.parquet"
        for _ in range(count):
            path = rng.choice(paths)
            content, whole = wholes[path]
            footer = int.from_bytes(content[-8:-4], "little") + 48
            bit = rng.randrange(8 * (len(content) - footer) if rng.random() < 0.5 else 0, 8 * len(content))
            place.write_bytes(flipped(content, bit))
            found.tried += 1
            with contextlib.suppress(store.Damaged):
                if not store.read_own(place).equals(whole, check_metadata=True):
                    found._say("unseen", f"bit {bit} of {path.name}")
    return found


def bits_of_journals(base: Path, rng: random.Random, count: int) -> Outcome:
    """A bit of a study's journal: the line is left out, and that is said, or it says what it said."""
    found = Outcome("bits of journals")
    with fresh(base) as results:
        search(results)
        path = results / "s" / "_study.journal"
        content, place = path.read_bytes(), results / "flipped.journal"
        whole = list(Journal(path).read_logs(0))
        for _ in range(count):
            bit = rng.randrange(8 * len(content))
            place.write_bytes(flipped(content, bit))
            found.tried += 1
            with contextlib.suppress(ValueError):  # no line is a journal's
                journal = Journal(place)
                # a flip in the name of the checksum's key makes it another program's line, which says the same
                logs = [{name: log.get(name) for name in other} for log, other in zip(journal.read_logs(0), whole, strict=False)]
                if logs != whole and not journal.damages and place.stat().st_size == len(content):
                    found._say("unseen", f"bit {bit}")
                elif place.stat().st_size != len(content) and bit // 8 < content.rfind(b"\n", 0, len(content) - 1):
                    found._say("lost", f"bit {bit}: whole lines were cut off")
    return found


def bits_of_caches(base: Path, rng: random.Random, count: int) -> Outcome:
    """A bit of a simulation's cache entry: a miss, or what it held."""
    import logging

    from rapid_dse.events.cache import AstraCache
    from rapid_dse.events.network_command import builtin_engine
    from rapid_dse.trace.graph_file import read_graph_file

    found, key = Outcome("bits of cache entries"), "0" * 64
    whole = builtin_engine(read_graph_file(sorted((ROOT / "tests/data/astrasim/graphs").glob("*.json"))[0]), "congestion_aware")
    logging.getLogger("rapid_dse").setLevel(logging.CRITICAL)
    with fresh(base) as folder:
        cache = AstraCache(folder)
        cache.put(key, whole)
        path = next(folder.glob("*.run"))
        content = path.read_bytes()
        for _ in range(count):
            bit = rng.randrange(8 * len(content))
            path.write_bytes(flipped(content, bit))
            found.tried += 1
            held = cache.get(key)
            if held is not None and (held.makespan_ns != whole.makespan_ns or held.end_ns.tolist() != whole.end_ns.tolist()):
                found._say("unseen", f"bit {bit}")
    return found


def rotten(base: Path, rng: random.Random, count: int, expected: Rows, space: Rows, trials: int) -> Outcome:
    """Bits of whole studies, of which the same command is run again: all rows are there, and right."""
    found = Outcome("studies with flipped bits")
    for at in range(count):
        study, rows = (search, space) if at % 2 else (grid, expected)
        with fresh(base) as results:
            study(results)
            for path in rng.sample(sorted(path for path in (results / "s").iterdir() if path.suffix in (store.SUFFIX, ".journal")), 2):
                content = path.read_bytes()
                path.write_bytes(flipped(content, rng.randrange(8 * len(content))))
            found.tried += 1
            if (code := ended(forked(lambda r=results, s=study: s(r)))) != 0:  # type: ignore[misc]
                found._say("lost", f"ended with {code}")
            # a search whose lines are lost goes on with other trials of its space
            found.compare(results / "s", rows, whole=study is grid)
            if study is search:
                found.trials(results / "s", trials)
    return found


# Races -------------------------------------------------------------------------------------------------------------------------------


def races(base: Path, rng: random.Random, count: int, expected: Rows, reference: Rows, trials: int) -> Outcome:
    """Several processes on one study: a grid's, a search's by a journal or by SQLite; some are killed on the way."""
    found = Outcome("races")
    for at in range(count):
        with fresh(base) as results:
            storage = [f"search.storage=sqlite:///{results}/s.db"] if at % 4 == 3 else []
            of_search = at % 2 == 1
            work = (lambda r=results, s=storage: search(r, *s)) if of_search else (lambda r=results: grid(r))
            children = [forked(work) for _ in range(rng.randint(3, 5))]
            if at % 3 == 0:
                time.sleep(rng.uniform(0.05, 0.6))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(children[0], signal.SIGKILL)
            codes = [ended(child) for child in children]
            found.tried += len(children)
            if any(code not in (0, -signal.SIGKILL) for code in codes):
                found._say("wrong", f"ended with {codes}")
            found.compare(results / "s", reference if of_search else expected, whole=not of_search)
            if of_search and not storage:
                found.trials(results / "s", trials)
    return found


# The table ---------------------------------------------------------------------------------------------------------------------------


def everything(base: Path, seed: int, share: float, only: str) -> list[Outcome]:
    """All kinds, or those whose function has a word in its name, at a share of their full counts, two at a time."""

    def times(count: int) -> int:
        return max(2, round(count * share))

    with fresh(base) as results:
        assert grid(results / "grid") == 0
        assert search(results / "search") == 0
        planned = plan(read([*SPACE, "search.study=s", f"search.results_dir={results / 'whole'}"]))
        assert driver.run(planned.portions, planned.search, planned.debug, _nowhere(), _nowhere()) == 0
        assert grid(results / "hybrid", "backend=hybrid") == 0
        expected, searched, space = (rows_of(results / name / "s") for name in ("grid", "search", "whole"))
        hybrid = rows_of(results / "hybrid" / "s")
    trials = 120
    jobs: Sequence[tuple[Callable[..., Outcome], tuple[Any, ...]]] = (
        (workers, (times(20), hybrid)),
        (kills, (times(280), grid, expected)),
        (kills, (times(240), search, searched, trials)),
        (ends, (times(60), expected)),
        (races, (times(24), expected, space, trials)),
        (disks, (times(16), expected, searched, trials)),
        (rotten, (times(40), expected, space, trials)),
        (bits_of_tables, (times(8500),)),
        (bits_of_journals, (times(1000),)),
        (bits_of_caches, (times(1000),)),
    )
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        waiting = [
            pool.submit(_timed, job, base, random.Random(f"{seed}:{at}"), given)
            for at, (job, given) in enumerate(jobs)
            if only in job.__name__
        ]
        return [each.result() for each in waiting]


def _timed(job: Callable[..., Outcome], base: Path, rng: random.Random, given: tuple[Any, ...]) -> Outcome:
    began = time.perf_counter()
    found = job(base, rng, *given)
    found.seconds = time.perf_counter() - began
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--seed", type=int, default=None, help="of all that is drawn; by default another one each time, which is printed")
    parser.add_argument("--only", default="", help="kinds whose function's name has this word: kills, disks, bits, journals, races")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.perf_counter()
    print(f"seed {seed}", flush=True)  # before what may hang, or be ended from outside
    with tempfile.TemporaryDirectory() as name:
        found = everything(Path(name), seed, options.share, options.only)
    print(f"{'what was done':30}{'tried':>8}{'lost':>8}{'doubled':>9}{'wrong':>8}{'unseen':>8}{'s':>6}")
    for each in found:
        note = f"  ({each.note})" if each.note else ""
        print(f"{each.name:30}{each.tried:8,}{each.lost:8,}{each.doubled:9,}{each.wrong:8,}{each.unseen:8,}{each.seconds:6.0f}{note}")
    print(f"in {time.perf_counter() - began:,.0f} s, seed {seed}")
    for line in [line for each in found for line in each.said][:40]:
        print(line)
    return int(any(each.bad for each in found))


if __name__ == "__main__":
    sys.exit(main())
