"""Tries inputs by chance, and tells what did not end well: ``python benchmarks/fuzz.py --inputs 100000``.

Each input gets 10 s. One ends well that gives a finite result or raises what the commands print as one line; the memory of all of them
together is bounded by a limit on the process. Each input follows from the seed and its number, so that --only tries one again.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from fuzz_inputs import SAID, FuzzKind, kinds  # noqa: E402 benchmarks are no package

SECONDS = 10.0
MEMORY = 4 << 30
GROWTH = 400 << 20  # of the resident memory over a run


class TooLong(BaseException):
    """An input took more than its seconds."""


@dataclass
class Tried:
    """What became of inputs: how many by kind, how many of those were refused, and what did not end well."""

    count: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def add(self, other: Tried) -> None:
        self.count.update(other.count)
        self.refused.update(other.refused)
        self.wrong += other.wrong
        self.slowest = max(self.slowest, other.slowest)


def tried(numbers: Sequence[int], seed: int) -> Tried:
    """Tries the inputs of these numbers."""
    all_kinds, found = kinds(), Tried()
    weights = [kind.share for kind in all_kinds]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), contextlib.chdir(name):
        warnings.simplefilter("ignore")
        for kind in all_kinds:  # imports, and what is read once, take longer than an input
            with contextlib.suppress(*SAID):
                kind.take(kind.make(random.Random(0), Path(name)))
        for number in numbers:
            rng = random.Random(f"{seed}:{number}")
            _try(rng.choices(all_kinds, weights)[0], rng, Path(name), number, found)
    return found


def _try(kind: FuzzKind, rng: random.Random, folder: Path, number: int, found: Tried) -> None:
    try:
        given = kind.make(rng, folder)
    except (UnicodeEncodeError, OSError):  # what no file can hold
        return
    found.count[kind.name] += 1
    began = time.perf_counter()
    try:
        with _limited():
            kind.take(given)
    except SAID:
        found.refused[kind.name] += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        found.wrong.append(f"{number} {kind.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]} <- {str(given)[:200]!r}")
    found.slowest = max(found.slowest, time.perf_counter() - began)


@contextmanager
def _limited() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise TooLong(f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _share(given: tuple[int, int, int, int]) -> Tried:
    """One process's share of the numbers, under a bound on memory."""
    start, stop, step, seed = given
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tried(range(start, start + 20 * step, step), seed)  # imports, and what is read once
    gc.collect()
    before = _resident()
    found = tried(range(start, stop, step), seed)
    gc.collect()
    if (grown := _resident() - before) > GROWTH:
        found.wrong.append(f"memory grew by {grown >> 20} MiB over {stop - start:,} inputs")
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of one input, tried in this process with its traceback")
    options = parser.parse_args()
    if options.only is not None:
        rng, all_kinds = random.Random(f"{options.seed}:{options.only}"), kinds()
        kind = rng.choices(all_kinds, [each.share for each in all_kinds])[0]
        with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
            given = kind.make(rng, Path(name))
            print(kind.name, repr(given)[:2000], *(path.read_bytes()[:4000] for path in Path(name).iterdir()), sep="\n")
            kind.take(given)
        return 0
    began, found = time.perf_counter(), Tried()
    with get_context("spawn").Pool(options.jobs) as pool:
        for part in pool.imap_unordered(_share, [(at, options.inputs, options.jobs, options.seed) for at in range(options.jobs)]):
            found.add(part)
    print(f"{'kind':16}{'tried':>9}{'refused':>9}")
    for name, count in sorted(found.count.items()):
        print(f"{name:16}{count:9,}{found.refused[name]:9,}")
    seconds = time.perf_counter() - began
    print(f"{found.count.total():,} inputs in {seconds:,.0f} s, the slowest {found.slowest:.2f} s; {len(found.wrong)} did not end well")
    for line in found.wrong[:40]:
        print(line)
    return int(bool(found.wrong))


if __name__ == "__main__":
    sys.exit(main())
