"""The sweep driver: portions in, a study in the store and a ranked table out."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rapid_dse.config.run import Debug, Search
from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import KEYS
from rapid_dse.simulate.results import Priced
from rapid_dse.sweep import identity, ranking, show, store, workers
from rapid_dse.sweep.chunks import Chunk, Summary, chunks_of
from rapid_dse.sweep.console import console
from rapid_dse.sweep.portion import Portion

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
SNAPSHOTS = 100
_STUDY = re.compile(r"[A-Za-z0-9][\w.+=-]*")


@dataclass
class Tally:
    """Sums over the summaries that have come so far; ``best`` holds as many rows as are asked for, whatever the sweep's size."""

    by: str
    top: int
    rows: int = 0
    priced: int = 0
    status: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    best: pa.Table | None = None

    def add(self, summary: Summary) -> None:
        import pyarrow as pa

        self.rows += summary.rows
        self.priced += summary.priced
        self.status.update(summary.status)
        self.reasons.update(summary.reasons)
        parts = [summary.best] if self.best is None else [self.best, summary.best]
        self.best = ranking.best(pa.concat_tables(parts, promote_options="permissive"), self.by, self.top)


def run(
    portions: Sequence[Portion],
    search: Search,
    debug: Debug,
    out: Console | None = None,
    err: Console | None = None,
) -> int:
    """Prices what the study does not hold yet, and prints the ranked table.

    Args:
        out: where the table goes; None is standard output.
        err: where progress, notices and failures go; None is standard error.

    Returns:
        the exit code: 0, 1 where every trial failed, 130 after Ctrl-C.

    Raises:
        ValueError: the study's name, the ranking column or the folder is unusable, before anything is priced; the store fails later.
    """
    out, err = out or console(), err or console(stderr=True)
    if not search.objectives:
        raise ValueError("search.objectives=[]; allowed: the column to rank by, as step_time_s")
    by, study = search.objectives[0], search.study or default_study(portions)
    require_study(study)
    _require_column(by)
    folder = Path(search.results_dir) / study
    store.prepare(folder)
    tally = Tally(by, max(search.top, search.refine, SNAPSHOTS if debug.hw_snapshots else 0))
    try:
        chunks = _planned(portions, folder, tally, err)
        _price(chunks, search, tally, err)
        _report(portions, search, tally, folder, out)
        if search.refine and tally.best is not None and len(tally.best):
            refine_best(tally.best, chunks, search, folder, by, out, err)
        if debug.hw_snapshots and tally.best is not None:
            from rapid_dse.sweep import snapshots

            written = snapshots.write(tally.best, chunks, Path("dbg_hw_conf"))
            out.print(f"hardware of the best trials: {written}", highlight=False, markup=False)
    except KeyboardInterrupt:
        store.remove_parts(folder)  # of workers that were stopped in the middle of a file
        _notice(err, f"interrupted after {tally.rows:,} trials; they are kept in {folder}, the same command goes on from there")
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads the output any more
        raise
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror or error}; what was written is kept, the same command goes on from there") from None
    return 1 if tally.rows and tally.status["error"] == tally.rows else 0


class Named(Protocol):
    """What a study is named by."""

    @property
    def scenario(self) -> Scenario: ...

    @property
    def choices(self) -> Mapping[str, str]: ...


def default_study(portions: Sequence[Named]) -> str:
    """hw-model-<8 hex of the base configuration>; several chips or models are joined by '+'."""
    chips, models = ("+".join(dict.fromkeys(portion.choices.get(name, "") for portion in portions)) for name in ("hw", "model"))
    return f"{chips[:40]}-{models[:60]}-{identity.digest_of_scenarios(portion.scenario for portion in portions)}"


def require_study(study: str) -> None:
    """Raises ``ValueError`` where the name cannot be a folder's."""
    if not _STUDY.fullmatch(study):
        raise ValueError(f"search.study={study!r}: no name of a folder; allowed: letters, digits and . _ + = -")


def _require_column(by: str) -> None:
    ranking.require_name(by, [*Priced.__dataclass_fields__, *KEYS.values(), "elapsed_s"], "search.objectives")


def _planned(portions: Sequence[Portion], folder: Path, tally: Tally, err: Console) -> list[Chunk]:
    """Every chunk, with the files under other names that hold some of its layouts where its own file is not there."""
    chunks = list(chunks_of(portions, folder, tally.by, tally.top))
    names = {f"{chunk.name}{store.SUFFIX}" for chunk in chunks}
    present = {path.name for path in folder.glob(f"*{store.SUFFIX}")}
    if names <= present or not present - names:
        return chunks
    known = store.known([folder / name for name in sorted(present - names)], lambda line: _notice(err, line))
    return [chunk if f"{chunk.name}{store.SUFFIX}" in present else replace(chunk, others=known.files_with(chunk.lanes)) for chunk in chunks]


def _price(chunks: Sequence[Chunk], search: Search, tally: Tally, err: Console) -> None:
    found = workers.summaries(chunks, search.jobs, search.launcher, search.launcher_address)
    with _progress(chunks, err) as advance:
        try:
            for summary in found:
                tally.add(summary)
                for line in summary.notices:
                    _notice(err, line)
                for reason, count in summary.failures.items():
                    _notice(err, f"{count:,} trial{'s' * (count != 1)} failed: {reason}")
                advance(summary.rows)
        finally:
            found.close()


def _notice(err: Console, line: str) -> None:
    err.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _progress(chunks: Sequence[Chunk], err: Console) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; a line now and then where the output goes elsewhere and the sweep is long."""
    total = sum(len(chunk) for chunk in chunks)
    if not err.is_terminal:
        yield _Lines(total, err).advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("pricing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("pricing", total=total)
        yield lambda rows: bar.update(task, advance=rows)


@dataclass
class _Lines:
    """Progress for a log: a line every ``every`` seconds."""

    total: int
    err: Console
    every: float = 30.0
    done: int = 0
    said: float = field(default_factory=time.monotonic)

    def advance(self, rows: int) -> None:
        self.done += rows
        if time.monotonic() - self.said >= self.every:
            self.said = time.monotonic()
            _notice(self.err, f"{self.done:,} of {self.total:,} trials priced")


def refine_best(best: pa.Table, chunks: Sequence[Chunk], search: Search, folder: Path, by: str, out: Console, err: Console) -> None:
    """Prices the first search.refine rows that fit by search.refine_backend, and prints them in their new order.

    Args:
        best: ranked rows, best first.
        chunks: where they come from.
    """
    from rapid_dse.sweep import ladder

    refined = ladder.refine(best, chunks, search, folder, by, lambda line: _notice(err, line))
    table, line = show.refined_table(refined, search.refine_backend, chunks[0].pieces[0].scenario.backend.name)
    out.print(table)
    out.print(line, highlight=False, markup=False)


def _report(portions: Sequence[Portion], search: Search, tally: Tally, folder: Path, out: Console) -> None:
    rejected: Counter[str] = Counter()
    for portion in portions:
        rejected.update(portion.rejected)
    if tally.best is not None and len(tally.best):
        out.print(show.ranked_table(_shown(tally.best, search.top), tally.by))
    show.show_counts(out, tally.status, tally.reasons, rejected)
    new = "all read from there" if not tally.priced else f"{tally.priced:,} priced now"
    out.print(f"stored in {folder} ({new})", highlight=False, markup=False)
    show.show_artifacts(out, (portion.scenario for portion in portions))


def _shown(best: pa.Table, top: int) -> pa.Table:
    """The best that fit; where nothing does, or all rows are few, those that do not as well."""
    fitting = best.filter(best["fits"])
    return best[:top] if len(best) <= top or not len(fitting) else fitting[:top]
