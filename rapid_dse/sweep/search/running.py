"""Runs a study from a command line's axes to its report."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from rapid_dse.common.standard_output import OutputFailedError
from rapid_dse.common.termination import what_ended
from rapid_dse.config.run import Debug, Search
from rapid_dse.parallel.layouts import COLUMN_OF
from rapid_dse.sweep import driver, identity, launch, ranked, ranking, show, study_folder
from rapid_dse.sweep.chunks import Chunk, seconds_of
from rapid_dse.sweep.console import console
from rapid_dse.sweep.portion import Portion, Priceable
from rapid_dse.sweep.search import findings
from rapid_dse.sweep.search.aims import Aims, read_aims
from rapid_dse.sweep.search.answers import Answers
from rapid_dse.sweep.search.bounding import skips
from rapid_dse.sweep.search.dimensions import described
from rapid_dse.sweep.search.progress import Progress
from rapid_dse.sweep.search.storage import StudyStorage, about
from rapid_dse.sweep.search.study import Parts, Study
from rapid_dse.sweep.search.study_space import SearchSpace, Trial
from rapid_dse.sweep.space import Axes, Setting
from rapid_dse.sweep.standing import Aim
from rapid_dse.sweep.table import CHOICES

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

# A trial that takes longer than this is a job of its own; faster ones are priced together.
_WORTH_A_JOB_SECONDS = 0.01
# Below this, starting workers (each loads the event engine) costs more than it saves.
_WORTH_WORKERS_SECONDS = 8.0


@dataclass(frozen=True)
class _Place:
    """Where a study is, and what it compares with."""

    name: str
    folder: Path
    settings: Sequence[Setting]


def run(axes: Axes, out: Console | None = None, err: Console | None = None) -> int:
    """Searches the space that the axes span, and prints what was found; within ``hydra_ready()``.

    Returns:
        the exit code: 0, 1 where every trial failed, 130 after Ctrl-C.

    Raises:
        ValueError: one line: an option, the storage or the folder is unusable.
    """
    out, err = out or console(), err or console(stderr=True)
    search, debug = axes.run_settings()
    space = SearchSpace(axes)
    aims = read_aims(search.objectives, search.constraints, list(axes.keys), search.headroom)
    settings = space.settings()
    name = search.study or driver.default_study(settings)
    driver.require_study(name)
    folder = Path(search.results_dir) / name
    study_folder.prepare(folder)
    # Optuna tells of each study that it makes or reads; what counts is told here.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return _searched(space, aims, (search, debug), _Place(name, folder, settings), (out, err))
    except (BrokenPipeError, OutputFailedError):  # nobody reads the output any more, or it takes no more
        raise
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror or error}; what was written is kept, the same command goes on from there") from None


def _searched(space: SearchSpace, aims: Aims, asked: tuple[Search, Debug], place: _Place, consoles: tuple[Console, Console]) -> int:
    (search, debug), (out, err) = asked, consoles
    storage = StudyStorage(search.storage, place.folder, place.name, [objective.direction for objective in aims.objectives])
    texts = [constraint.text for constraint in aims.constraints]
    storage.settle(about(described(space.dimensions), [o.text for o in aims.objectives], texts, space.digest()))
    progress = Progress(search.n_trials, aims, err)
    if closed := storage.close_stale():
        progress.notice(f"{closed} trials that another program began and left were closed")
    study, ended = None, ""
    with ExitStack() as stack:
        jobs = _jobs(stack, search, place.settings, search.n_trials - len(storage.trials()))
        answers = Answers(place.folder, jobs, progress.notice)
        backends = [setting.scenario.backend.name for setting in place.settings]
        left_out = skips(search.prune, backends, search.sampler, space.countable)
        study = Study(Parts(space, aims, storage, answers, search, left_out, stack.enter_context(progress.on_screen())))
        # That NSGA-III is experimental, and that CMA-ES does not know constraints, a user hears from the README, not at each trial.
        stack.enter_context(warnings.catch_warnings())
        for category in (optuna.exceptions.ExperimentalWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        try:
            study.run()
        except KeyboardInterrupt as error:
            ended = what_ended(error)
    if ended:
        err.print(f"{ended}: {study.outcome.answered:,} trials are kept in {place.folder}; the same command goes on from there")
        return driver.INTERRUPTED
    aim = aim_of(space, aims, search)
    _report(study, space, aims, aim, out)
    out.print(
        f"stored in {place.folder} and {storage.where} ({answers.priced:,} priced now)", highlight=False, markup=False, soft_wrap=True
    )
    show.show_artifacts(out, (setting.scenario for setting in place.settings))
    _again(study, space, aim, (search, debug), place.folder, (out, err))
    return 1 if set(ranking.counts(_rows(study))[0]) == {"error"} else 0


def _jobs(stack: ExitStack, search: Search, settings: Sequence[Setting], trials: int) -> launch.RunAll | None:
    """What runs the trials that are left, a job each; None where they are fast and nothing else is asked for."""
    seconds = max(seconds_of(setting.scenario) for setting in settings)
    if search.launcher == "loky" and search.launcher_address is None:
        if seconds < _WORTH_A_JOB_SECONDS:
            return None
        if seconds * trials < _WORTH_WORKERS_SECONDS:
            return launch.here
    return stack.enter_context(launch.launcher(search.launcher, search.jobs, search.launcher_address))


def aim_of(space: SearchSpace, aims: Aims, search: Search) -> Aim:
    """What the ranking of a study is after.

    Raises:
        ValueError: where search.best_per is no key.
    """
    outer = space.outer_keys
    if search.best_per is not None:
        ranking.require_key(search.best_per, [*CHOICES, *COLUMN_OF, *outer], "search.best_per")
    return Aim(aims.objectives[0].text, search.top, aims.constraints[1:], search.headroom, outer, search.best_per, search.each)


def _report(study: Study, space: SearchSpace, aims: Aims, aim: Aim, out: Console) -> None:
    outcome = study.outcome
    findings_of_study = findings.Found.of(_rows(study), outcome.feasible)
    at = _labels(study)

    def trial(row: ranked.Row) -> Priceable:
        portion = _portion(space, at[row["key"]])
        return Priceable(portion.scenario, portion.layouts)

    findings.report(out, findings_of_study, aims, aim, trial)
    status, reasons = ranking.counts(_rows(study))
    show.show_counts(out, status, reasons, space.rejected)
    if outcome.pruned:
        out.print(
            f"{outcome.pruned:,} trials skipped: they cannot meet the constraints, or a lower bound shows that they cannot win",
            highlight=False,
        )
    if outcome.exhausted:
        out.print("every layout that could win has been tried", highlight=False)
    proof = study.proof()
    if proof is not None:
        out.print(proof.text(), highlight=False)


def _rows(study: Study) -> pa.Table:
    rows = study.outcome.rows
    assert rows is not None, "the study has run"
    return rows


def _labels(study: Study) -> dict[str, Mapping[str, Any]]:
    """Each trial's parameters, by its row's key."""
    return dict(zip(_rows(study)["key"].to_pylist(), study.outcome.labels, strict=True))


def _again(
    study: Study, space: SearchSpace, aim: Aim, settings: tuple[Search, Debug], folder: Path, consoles: tuple[Console, Console]
) -> None:
    """What is made of the best trials: their prices by another backend, their hardware."""
    search, debug = settings
    count = max(search.refine, driver.SNAPSHOTS if debug.hw_snapshots else 0)
    findings_of_study = findings.Found.of(_rows(study), study.outcome.feasible)
    if not count or not len(findings_of_study.rows):
        return
    best = ranking.best(findings_of_study.rows, aim.by, count)
    at = _labels(study)
    chunks = [_chunk(space, at[key], folder, aim) for key in best["key"].to_pylist()]
    if search.refine:
        driver.refine_best(best, chunks, search, folder, aim, consoles)
    if debug.hw_snapshots:
        from rapid_dse.sweep import snapshots

        written = snapshots.write(best[: driver.SNAPSHOTS], chunks, Path("dbg_hw_conf"))
        consoles[0].print(f"hardware of the best trials: {written}", highlight=False, markup=False, soft_wrap=True)


def _chunk(space: SearchSpace, labels: Mapping[str, Any], folder: Path, aim: Aim) -> Chunk:
    """The layout of one trial, as a chunk of its own."""
    portion = _portion(space, labels)
    return Chunk((portion,), identity.keys(portion.scenario, portion.layouts), folder, aim)


def _portion(space: SearchSpace, labels: Mapping[str, Any]) -> Portion:
    """The layout of one trial."""
    variant = space.variant(labels)
    return Trial(0, variant, variant.points.row(labels) or 0, labels).portion()
