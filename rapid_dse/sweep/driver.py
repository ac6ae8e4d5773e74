"""The sweep driver: portions in, a study in the store and a ranked table out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.standard_output import OutputFailedError
from rapid_dse.common.termination import what_ended
from rapid_dse.config.run import Debug, Search
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.units import shortened
from rapid_dse.imports.file_options import is_file_option
from rapid_dse.parallel.layouts import COLUMN_OF
from rapid_dse.sweep import arrow, identity, listing, ranked, ranking, show, standing, store, study_folder, workers
from rapid_dse.sweep.chunks import Chunk, Summary, chunks_of, rows_of
from rapid_dse.sweep.console import console
from rapid_dse.sweep.portion import Portion, Priceable
from rapid_dse.sweep.progress_lines import ProgressLines
from rapid_dse.sweep.search.aims import read_aims
from rapid_dse.sweep.snapshots import find
from rapid_dse.sweep.standing import Aim, Standing
from rapid_dse.sweep.table import CHOICES

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended
SNAPSHOTS = 100
MOST_APART = 1_000_000  # rows in small arrays, whose memory an allocator does not give back once they are put together
LONGEST_STUDY = 150
_STUDY = re.compile(r"[A-Za-z0-9]([\w.+=-]*[\w+=-])?")
_DEVICE = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]", re.IGNORECASE)


@dataclass
class Tally:
    """Sums over the summaries that have come so far."""

    aim: Aim
    rows: int = 0
    priced: int = 0
    status: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    parts: list[Standing] = field(default_factory=list)
    files: dict[Path, None] = field(default_factory=dict)

    def add(self, summary: Summary) -> None:
        self.rows += summary.rows
        self.priced += summary.priced
        self.status.update(summary.status)
        self.reasons.update(summary.reasons)
        self.parts.append(summary.standing)
        if sum(map(len, self.parts[1:])) > max(MOST_APART, len(self.parts[0]) // 8):
            self.parts = [standing.together(self.parts, self.aim)]
        self.files.update(dict.fromkeys(summary.files))

    def standing(self) -> Standing:
        """How all rows stand."""
        whole = standing.together(self.parts, self.aim)
        self.parts = [whole]
        return whole

    def best(self, standing_now: Standing, count: int) -> pa.Table:
        """The ``count`` best rows that count, best first; of those that do not, where none does."""
        import pyarrow as pa

        counts = standing_now.verdict == standing.FITS
        rows = np.flatnonzero(counts if counts.any() else ~counts)
        order = rows[np.argsort(standing_now.loss[rows], kind="stable")][:count]
        return pa.Table.from_pylist(rows_of(list(self.files), standing_now.lanes[order]))


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
    study = search.study or default_study(portions)
    require_study(study)
    aim = aim_of(search, portions)
    if len(search.objectives) > 1:
        _notice(err, f"a grid is ranked by {aim.by}, the first of search.objectives; the front of several: search=optuna")
    folder = Path(search.results_dir) / study
    tally = Tally(aim)
    try:
        chunks = _ready(portions, folder, tally, err)
        _price(chunks, search, tally, err)
        standing_now = tally.standing()
        _report(portions, tally, standing_now, chunks, folder, out)
        _again(tally, standing_now, chunks, (search, debug), folder, (out, err))
    except KeyboardInterrupt as error:
        study_folder.remove_parts(folder)  # of workers that were stopped in the middle of a file
        _notice(err, f"{what_ended(error)} after {tally.rows:,} trials; they are kept in {folder}, the same command goes on from there")
        return INTERRUPTED
    except (BrokenPipeError, OutputFailedError):  # nobody reads the output any more, or it takes no more
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
    chips, models = ("+".join(dict.fromkeys(_named(portion, name) for portion in portions)) for name in ("hw", "model"))
    return f"{chips[:40]}-{models[:60]}-{identity.digest_of_scenarios(portion.scenario for portion in portions)}"


def _named(portion: Named, group: str) -> str:
    """The option of a group; of one that is a file the name that it has inside."""
    option = portion.choices.get(group, "")
    if not is_file_option(group, option):
        return option
    name: str = getattr(portion.scenario, group).name
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", name)


def require_study(study: str) -> None:
    """Raises ``ValueError`` where the name cannot be a folder's, on Windows too."""
    if not _STUDY.fullmatch(study) or len(study) > LONGEST_STUDY:
        raise ValueError(
            f"search.study={shortened(study)}: no name of a folder; allowed: up to {LONGEST_STUDY} letters, digits and . _ + = -, "
            "the first a letter or a digit, the last no ."
        )
    if _DEVICE.fullmatch(study.split(".")[0]):
        raise ValueError(f"search.study={study!r}: a device's name on Windows, where no folder can have it; allowed: another one")


def aim_of(search: Search, portions: Sequence[Portion]) -> Aim:
    """What the ranking of a grid is after.

    Raises:
        ValueError: where a column, a constraint or a key is none.
    """
    keys = [key for key in dict.fromkeys(key for portion in portions for key in portion.keys) if _all_numbers(portions, key)]
    aims = read_aims(search.objectives[:1], search.constraints, keys)
    by, per = aims.objectives[0].text, search.best_per
    if per is not None:
        given = dict.fromkeys(key for portion in portions for key in portion.keys)
        ranking.require_key(per, [*CHOICES, *COLUMN_OF, *given], "search.best_per")
    return Aim(by, search.top, aims.constraints[1:], search.headroom, tuple(differing(portions)), per, search.each)


def _all_numbers(portions: Sequence[Portion], key: str) -> bool:
    return all(isinstance(portion.keys.get(key), int | float | None) for portion in portions)


def differing(portions: Sequence[Portion]) -> list[str]:
    """Keys outside the layout that differ between trials: groups, keys, numbers of GPUs, and of sequences or requests."""
    keys = dict.fromkeys(key for portion in portions for key in portion.keys)
    names = [name for name in CHOICES if len({portion.choices.get(name) for portion in portions}) > 1]
    outer = {name: key for portion in portions for name, key in portion.layouts.keys.items() if not key.startswith("parallel.")}
    for name, key in outer.items():
        columns = [getattr(portion.layouts, name) for portion in portions if len(portion.layouts) and name in portion.layouts.keys]
        names += [key] * (len({end for column in columns for end in _ends(column)}) > 1)
    return [*names, *(key for key in keys if len({repr(portion.keys.get(key)) for portion in portions}) > 1)]


def _ends(column: NDArray[Any]) -> tuple[float, float]:
    return float(column.min()), float(column.max())


def _ready(portions: Sequence[Portion], folder: Path, tally: Tally, err: Console) -> list[Chunk]:
    """Every chunk, in a folder that can be written, or that holds all of them already.

    Raises:
        ValueError: where rows are missing and the folder cannot be written.
    """
    try:
        study_folder.prepare(folder)
    except ValueError:
        chunks = list(chunks_of(portions, folder, tally.aim))
        if not all(chunk.own.is_file() for chunk in chunks):
            raise
        return chunks
    return _planned(portions, folder, tally, err)


def _planned(portions: Sequence[Portion], folder: Path, tally: Tally, err: Console) -> list[Chunk]:
    """Every chunk, with the files under other names that hold some of its layouts where its own file is not there."""
    chunks = list(chunks_of(portions, folder, tally.aim))
    names = {f"{chunk.name}{store.SUFFIX}" for chunk in chunks}
    present = {path.name for path in folder.glob(f"*{store.SUFFIX}")}
    if names <= present or not present - names:
        return chunks
    known = store.known([folder / name for name in sorted(present - names)], lambda line: _notice(err, line))
    return [chunk if f"{chunk.name}{store.SUFFIX}" in present else replace(chunk, others=known.files_with(chunk.lanes)) for chunk in chunks]


def _price(chunks: Sequence[Chunk], search: Search, tally: Tally, err: Console) -> None:
    summaries = workers.summaries(chunks, search.jobs, search.launcher, search.launcher_address)
    with _progress(chunks, err) as advance:
        try:
            for summary in summaries:
                tally.add(summary)
                for line in summary.notices:
                    _notice(err, line)
                for reason, count in summary.failures.items():
                    _notice(err, f"{count:,} trial{'s' * (count != 1)} failed: {reason}")
                advance(summary.rows)
        finally:
            summaries.close()


def _notice(err: Console, line: str) -> None:
    err.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _progress(chunks: Sequence[Chunk], err: Console) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; a line now and then where the output goes elsewhere and the sweep is long."""
    total = sum(len(chunk) for chunk in chunks)
    if not err.is_terminal:
        yield ProgressLines(total, err).advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("pricing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("pricing", total=total)
        yield lambda rows: bar.update(task, advance=rows)


def refine_best(best: pa.Table, chunks: Sequence[Chunk], search: Search, folder: Path, aim: Aim, consoles: tuple[Console, Console]) -> None:
    """Prices the first search.refine rows that fit by search.refine_backend, and prints them in their new order.

    Args:
        best: ranked rows, best first.
        chunks: where they come from.
        consoles: for the table, and for notices.
    """
    from rapid_dse.sweep import ladder

    out, err = consoles
    refined = ladder.refine(best, chunks, search, folder, aim, lambda line: _notice(err, line))
    show.show_refined(out, refined, aim.varying, search.refine_backend, chunks[0].pieces[0].scenario.backend.name)


def _again(
    tally: Tally,
    standing_now: Standing,
    chunks: Sequence[Chunk],
    settings: tuple[Search, Debug],
    folder: Path,
    consoles: tuple[Console, Console],
) -> None:
    """What is made of the best trials: their prices by another backend, their hardware."""
    search, debug = settings
    groups = np.unique(standing_now.group)[: search.refine] if search.refine else ()
    for group in groups:  # of other jobs as many each
        job = standing_now.take(np.flatnonzero(standing_now.group == group))
        refine_best(tally.best(job, search.refine // len(groups)), chunks, search, folder, tally.aim, consoles)
    if debug.hw_snapshots and len(standing_now):
        from rapid_dse.sweep import snapshots

        written = snapshots.write(tally.best(standing_now, SNAPSHOTS), chunks, Path("dbg_hw_conf"))
        consoles[0].print(f"hardware of the best trials: {written}", highlight=False, markup=False, soft_wrap=True)


def _report(portions: Sequence[Portion], tally: Tally, standing_now: Standing, chunks: Sequence[Chunk], folder: Path, out: Console) -> None:
    rejected: Counter[str] = Counter()
    for portion in portions:
        rejected.update(portion.rejected)

    def trial(row: ranked.Row) -> Priceable:
        portion, at = find(chunks, store.key_lanes(arrow.texts([row["key"]]))[0])
        return Priceable(portion.scenario, portion.layouts.take(slice(at, at + 1)))

    source = ranked.Source(lambda lanes: rows_of(list(tally.files), lanes), trial, "search.each=true")
    ranked.show_ranking(out, standing_now, tally.aim, source)
    show.show_counts(out, tally.status, tally.reasons, rejected, standing_now.broken)
    if not tally.rows:
        listing.say(out, "no layout of this space is legal; what breaks which rule stands above")
        return
    new = "all read from there" if not tally.priced else f"{tally.priced:,} priced now"
    out.print(f"stored in {folder} ({new})", highlight=False, markup=False, soft_wrap=True)
    show.show_artifacts(out, (portion.scenario for portion in portions))
