"""Searches what breaks the laws of serving, and by how much: ``python benchmarks/serving_laws.py --seed 1 --trials 1000``.

With more requests under way, or faster ones, no fewer are served a second and none decodes sooner; a faster machine serves no fewer and
none later; with a longer prompt no first token comes sooner, and with more tokens to generate no request ends sooner. Each case is drawn by
chance from the seed and its number, so that a seed gives the same table everywhere. A line of the table is a class of cases: how many
cases, the largest violation of all, as a share, and their 99th and 95th percentile; what does not fit breaks none. Below it stands the
largest one's sweep, to be given to ``python -m rapid_dse``, and its two values.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent)]
from law_cases import FASTER, figure  # noqa: E402 tests are no package
from served_cases import Pricer, Row, ServedCase, drawn  # noqa: E402 benchmarks are no package

from rapid_dse.simulate.inference.pricing import price  # noqa: E402

RATE, TOKEN, FIRST, WHOLE = "requests_per_s", "tpot_s", "ttft_s", "request_latency_s"
ENDLESS = 10**7  # requests of a run whose ends do not count
ALL_RUN = 0.999  # share of those asked for that run, or are served, from which on it is all of them
UNDER_WAY = tuple(np.unique([*range(1, 21), *np.rint(np.geomspace(20, 2048, 45)).astype(int)]).tolist())
SENT_AT_ONCE = tuple(np.unique(np.rint(np.geomspace(1, 4000, 50)).astype(int)).tolist())
RATES = tuple(round(0.05 * 1.25**step, 6) for step in range(56))
# Of a closed loop num_prompts, without which ten are sent for each request under way; of an open loop those of which one is drawn.
CLOSED: dict[str, Row] = {"closed, ten each": {}} | {
    f"closed, {name}": {"num_prompts": sent} for name, sent in (("100 sent", 100), ("1,000 sent", 1000), ("endless", ENDLESS))
}
OPEN = {"open, 3 to 20 sent": (3, 5, 13, 20), "open, 100 to 1,000 sent": (100, 200, 1000), "open, endless": (ENDLESS,)}
AT_ONCE = "all at once"
# Loads under which single values of a case are changed.
LOADS: tuple[tuple[str, Row], ...] = (
    *((name, {"concurrency": running, **sent}) for name, sent in CLOSED.items() for running in (1, 2, 5, 17, 64, 200, 512, 1500)),
    *((name, {"request_rate": round(0.1 * 3.0**step, 1), "num_prompts": OPEN[name][-2]}) for name in [*OPEN][:2] for step in range(9)),
    *((AT_ONCE, {"num_prompts": sent}) for sent in (1, 100, 500, 2000)),
)
NOT_SERVED = {"products", "node skew"}  # of FASTER: what serving does not read
GENERATED = (1, 2, 3, 5, 8, 16, 64, 200)
PROMPTS = (1, 2, 3, 8, 64, 256, 1000, 1024, 2048, 4096, 16_384)


@dataclass(frozen=True, order=True)
class LawClass:
    """What a line of the table is of: a law, the column that breaks it, and the kind of load, of engine and of requests' lengths."""

    law: str
    column: str
    load: str
    engine: str
    lengths: str

    def __str__(self) -> str:
        return f"{self.law:15}{self.column:19}{self.load:25}{self.engine:24}{self.lengths:10}"


@dataclass(frozen=True)
class Violation:
    """The largest of a case in its class: its share of the lawful value, 0 where the law holds; the sweep that shows it; both values."""

    law_class: LawClass
    size: float
    words: str
    values: tuple[float, float]


@dataclass(frozen=True)
class LadderLaw:
    """No column falls along a ladder of loads.

    Attributes:
        name: as the table has it.
        columns: of the results.
        ladders: loads with their name, of which one ladder is drawn for a case.
    """

    name: str
    columns: tuple[str, ...]
    ladders: Sequence[tuple[str, Sequence[Row]]]

    def violations(self, case: ServedCase, rng: random.Random) -> Iterator[Violation]:
        load, rows = rng.choice(self.ladders)
        served = case.served(rows)
        for column in self.columns:
            if column == TOKEN and case.generated == 1:
                continue
            values = getattr(served, column)
            counted = self.counted(column, served, rows) | (case.pools and "request_rate" not in rows[0])
            size, first, second = largest_fall(values, counted & (served.running_requests > 0))
            law_class = LawClass(self.name, column, load, case.engine_kind, case.lengths)
            yield Violation(law_class, size, case.words(rows[first], rows[second]), (float(values[first]), float(values[second])))

    def counted(self, column: str, served: Any, rows: Sequence[Row]) -> NDArray[np.bool_]:
        """Which rungs count: of rates of loops all; else of a closed loop, and of all at once, those that all have a place on the engine;
        of an endless open loop those that are kept up with."""
        if column == RATE and len(rows[0].keys() & {"concurrency", "request_rate"}):
            return np.ones(len(rows), bool)
        asked = np.array([min(row.get(name, ENDLESS) for name in ("concurrency", "num_prompts")) for row in rows])
        if "request_rate" not in rows[0]:
            return np.asarray(served.running_requests >= ALL_RUN * asked)
        return np.asarray((served.requests_per_s >= ALL_RUN * np.array([row["request_rate"] for row in rows])) | (asked < ENDLESS))


@dataclass(frozen=True)
class StepLaw:
    """No column gets worse along a ladder of settings, under any of ``LOADS``.

    Attributes:
        name: as the table has it.
        columns: of the results, with 1 for those that may not fall and -1 for those that may not rise.
        settings: of a case, values of keys.
        same_place: count only loads of which no fewer have a place than before.
    """

    name: str
    columns: dict[str, int]
    settings: Callable[[ServedCase, random.Random], Sequence[Row]]
    same_place: bool = True

    def violations(self, case: ServedCase, rng: random.Random) -> Iterator[Violation]:
        cases = [case.changed(values) for values in self.settings(case, rng)]
        results = [each.served([row for _, row in LOADS]) for each in cases]
        running = np.stack([each.running_requests for each in results])
        counted = (running[1:] >= ALL_RUN * running[:-1]) | (not self.same_place)
        counted &= running[:-1] > 0  # a request fits
        classes = np.array([[f"{each.lengths}/{load}" for load, _ in LOADS] for each in cases[:-1]])
        for column, way in self.columns.items():
            values = np.stack([getattr(each, column) for each in results])
            sizes = np.nan_to_num(np.where(counted, 1 - (values[1:] / values[:-1]) ** way, 0.0)).clip(0.0)
            for name in np.unique(classes):
                step, at = np.unravel_index(np.where(classes == name, sizes, -1.0).argmax(), sizes.shape)
                lengths, load = name.split("/")
                yield Violation(
                    LawClass(self.name, column, load, case.engine_kind, lengths),
                    float(sizes[step, at]),
                    cases[step].words(LOADS[at][1], {**cases[step + 1].values, **LOADS[at][1]}),
                    (float(values[step, at]), float(values[step + 1, at])),
                )


def largest_fall(values: NDArray[np.float64], counted: NDArray[np.bool_]) -> tuple[float, int, int]:
    """The largest fall below what stands before: its share, and between which two; of values that count and are finite and above 0."""
    counted = counted & np.isfinite(values) & (values > 0)
    most = np.maximum.accumulate(np.where(counted, values, -np.inf))
    falls = np.where(counted, 1 - values / most, 0.0)
    second = int(falls.argmax())
    return float(falls[second]), int(np.flatnonzero(most == most[second])[0]) if counted[second] else second, second


def faster(case: ServedCase, rng: random.Random) -> Sequence[Row]:
    """What one of a machine's values is, and what makes it faster."""
    of = case.scenario
    change = FASTER[rng.choice(sorted(FASTER.keys() - NOT_SERVED))](of)
    return {key: figure(of, key) for key in change}, change


LAWS: tuple[LadderLaw | StepLaw, ...] = (
    LadderLaw(
        "more running",
        (RATE, TOKEN, FIRST, WHOLE),
        [(name, [{"concurrency": running, **sent} for running in UNDER_WAY]) for name, sent in CLOSED.items()],
    ),
    LadderLaw(
        "more arriving",
        (RATE, TOKEN, WHOLE),
        [(name, [{"request_rate": rate, "num_prompts": sent} for rate in RATES]) for name, given in OPEN.items() for sent in given],
    ),
    LadderLaw("more at once", (RATE, TOKEN, WHOLE), [(AT_ONCE, [{"num_prompts": sent} for sent in SENT_AT_ONCE])]),
    StepLaw("machine", {RATE: 1, WHOLE: -1}, faster, same_place=False),
    StepLaw("generated", {WHOLE: 1}, lambda case, rng: [{"workload.decode_len": length} for length in GENERATED]),
    StepLaw("prompt", {FIRST: 1, WHOLE: 1}, lambda case, rng: [{"workload.prompt_len": length} for length in PROMPTS]),
)
NAMES = tuple(law.name.replace(" ", "_") for law in LAWS)


def searched(law: LadderLaw | StepLaw, seed: int, trials: int, pricer: Pricer = price) -> dict[LawClass, list[Violation]]:
    """The violations of so many cases, by class."""
    found: dict[LawClass, list[Violation]] = defaultdict(list)
    for number in range(trials):
        rng = random.Random(f"{seed}:{law.name}:{number}")
        for violation in law.violations(drawn(rng, pricer), rng):
            found[violation.law_class].append(violation)
    return found


def lines(found: dict[LawClass, list[Violation]], least: float) -> Iterator[str]:
    """The table of one law: classes whose largest violation is no smaller than the least, the largest first."""
    none = 0
    for law_class, violations in sorted(found.items(), key=lambda item: (-max(each.size for each in item[1]), item[0])):
        sizes = np.array([each.size for each in violations])
        if sizes.max() < least:
            none += 1
            continue
        worst, shares = violations[int(sizes.argmax())], (sizes.max(), *np.quantile(sizes, (0.99, 0.95)))
        yield f"{law_class}{len(sizes):6}" + "".join(f"{share:8.1%}" for share in shares)
        yield f"    {worst.words}"
        yield f"    {law_class.column} {worst.values[0]:.6g} -> {worst.values[1]:.6g}"
    yield f"{none} further classes, with nothing of {least:.1%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=1000, help="cases of each law")
    parser.add_argument("--laws", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--least", type=float, default=0.01, help="share from which on a class's largest violation is printed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'law':15}{'column':19}{'load':25}{'engine':24}{'lengths':10}{'cases':>6}{'largest':>8}{'99 %':>8}{'95 %':>8}")
    for law, name in zip(LAWS, NAMES, strict=True):
        if name in options.laws:
            print(*lines(searched(law, options.seed, options.trials), options.least), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
