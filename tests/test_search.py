"""Optuna studies: legal layouts alone, the same again, an end that is proven, errors that lose nothing."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from studies import SPACE, essence, priced_exhaustively, study, trials, without_times

from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.sweep import table
from rapid_dse.sweep.compose import hydra_ready
from rapid_dse.sweep.overrides import read
from rapid_dse.sweep.search import journal, storage
from rapid_dse.sweep.search import running as search_run
from rapid_dse.sweep.search.aims import read_aims
from rapid_dse.sweep.search.dimensions import Choice
from rapid_dse.sweep.search.progress import Progress
from rapid_dse.sweep.search.study import Study
from rapid_dse.sweep.search.study_space import SearchSpace
from rapid_dse.sweep.space import axes, plan

Rows = dict[str, dict[str, Any]]
ONE = "search.objectives=[step_time_s]"
TWO = "search.objectives=[step_time_s,peak_memory_bytes]"
CHIPS = ("model=llama3_1_8b", "hw.memory.bandwidth=interval(2e12,6e12)", "hw.sms=interval(100,200)", "parallel.tp=all", "parallel.pp=all")


@pytest.fixture(scope="module")
def whole_grid(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of the whole space by key."""
    return priced_exhaustively(tmp_path_factory.mktemp("grid"))


GENERATIONS = (63, 117)  # in the second of 50 trials, and in the third
SOME = (27, 60)


@pytest.mark.parametrize(
    ("sampler", "objectives", "totals"),
    [
        *(("tpe", ONE, SOME), ("tpe", TWO, SOME), ("nsga2", ONE, GENERATIONS), ("nsga2", TWO, GENERATIONS), ("nsga3", TWO, GENERATIONS)),
        *(("random", ONE, SOME), ("brute_force", TWO, SOME)),
    ],
)
def test_every_sampler_proposes_legal_layouts_none_twice_and_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, sampler: str, objectives: str, totals: tuple[int, int]
) -> None:
    with_sampler = (f"search.sampler={sampler}", objectives)
    study(tmp_path, f"search.n_trials={totals[0]}", *with_sampler, name="twice")
    twice = study(tmp_path, f"search.n_trials={totals[1]}", *with_sampler, name="twice")
    once = study(tmp_path, f"search.n_trials={totals[1]}", *with_sampler, name="once")
    assert len(once.trials) == totals[1], "n_trials is a total"
    assert essence(twice.trials) == essence(once.trials)
    assert without_times(twice.rows) == without_times(once.rows)
    assert len({t.user_attrs["key"] for t in once.trials}) == totals[1], "none twice"
    assert all(row["status"] in ("ok", "oom") for row in once.rows)


def test_cmaes_searches_chips_and_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    study(tmp_path, "search.n_trials=13", "search.sampler=cmaes", space=CHIPS, name="twice")
    twice = study(tmp_path, "search.n_trials=35", "search.sampler=cmaes", space=CHIPS, name="twice")
    once = study(tmp_path, "search.n_trials=35", "search.sampler=cmaes", space=CHIPS, name="once")
    assert essence(twice.trials) == essence(once.trials)
    for trial in once.trials:
        assert 2e12 <= trial.params["hw.memory.bandwidth"] <= 6e12
        assert isinstance(trial.params["hw.sms"], int)
        assert trial.user_attrs["hw.memory.bandwidth"] == trial.params["hw.memory.bandwidth"]


def test_brute_force_and_grid_give_the_same_set(tmp_path: Path, whole_grid: Rows) -> None:
    expected = whole_grid
    found = study(tmp_path, "search.sampler=brute_force", "search.n_trials=100000")
    assert without_times(found.rows) == expected
    assert len(found.trials) == len(expected)
    assert "every layout that could win has been tried" in found.out


def test_the_same_seed_gives_the_same_study_and_another_another(tmp_path: Path) -> None:
    one, same, other = (study(tmp_path, "search.n_trials=40", f"search.seed={seed}", name=n) for n, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert essence(one.trials) == essence(same.trials)
    assert essence(one.trials)[10:] != essence(other.trials)[10:]


def test_what_the_store_holds_is_not_priced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = study(tmp_path, "search.n_trials=30")
    os.remove(first.folder / "_study.journal")

    def no_price(*_: Any) -> Any:
        raise AssertionError("priced again")

    monkeypatch.setattr(table, "price", no_price)
    again = study(tmp_path, "search.n_trials=30", "search.fail_fast=true")
    assert "(0 priced now)" in again.out
    assert essence(again.trials) == essence(first.trials)


def test_known_good_layouts_go_first_and_can_be_left_out(tmp_path: Path) -> None:
    with_them, without = study(tmp_path, "search.n_trials=4"), study(tmp_path, "search.n_trials=4", "search.enqueue=0", name="bare")
    assert all(row["fits"] for row in with_them.rows)
    assert [t.params for t in with_them.trials] != [t.params for t in without.trials]


def test_constraints_hold_and_user_attributes_are_the_row(tmp_path: Path) -> None:
    found = study(tmp_path, "search.n_trials=60", 'search.constraints=["peak_memory_bytes<=6e10"]')
    assert found.out.splitlines()[1].split()[0] == "1"
    for trial in found.trials:
        assert trial.constraints["peak_memory_bytes<=6e10"] == pytest.approx(trial.user_attrs["peak_memory_bytes"] / 6e10 - 1)
        assert (trial.constraints["fits"] <= 0) == trial.user_attrs["fits"]
        assert {"status", "key", "step_time_s", "mfu", "energy_j", "parallel.tp"} <= set(trial.user_attrs)
    best = min(t.values[0] for t in found.trials if all(excess <= 0 for excess in t.constraints.values()))
    shown = next(line for line in found.out.splitlines() if line.startswith(" 1 "))
    assert f"{best * 1e3:.1f} ms" in shown or f"{best:.2f} s" in shown


def own_bytes(trials: list[optuna.trial.FrozenTrial]) -> list[int]:
    """Memory of each trial's attributes that no other trial shares, bytes."""
    parts = [[trial, *vars(trial).values(), *map(partial(getattr, trial.user_attrs), trial.user_attrs.__slots__)] for trial in trials]
    times = Counter(id(part) for of_trial in parts for part in {id(part): part for part in of_trial}.values())
    return [sum(sys.getsizeof(part) for part in of_trial if times[id(part)] == 1) for of_trial in parts]


@pytest.mark.parametrize("database", [False, True])
def test_memory_holds_of_each_trial_what_the_study_asks_for_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: bool
) -> None:
    held: list[tuple[Study, list[optuna.trial.FrozenTrial]]] = []

    class Seen(Study):
        def run(self) -> None:
            super().run()
            held.append((self, self._parts.storage.trials()))

    monkeypatch.setattr(search_run, "Study", Seen)
    elsewhere = [f"search.storage=sqlite:///{tmp_path / 'study.db'}"] if database else []
    for n_trials in (24, 40):  # the second goes on from the first
        study(tmp_path, f"search.n_trials={n_trials}", "search.batch=8", *elsewhere)
        ((ran, kept),) = held
        held.clear()
        own = ran._mirror.study.get_trials(deepcopy=False)
        assert len(kept) == len(own) == n_trials
        for trial, mirrored in zip(kept, own, strict=True):
            assert trial.user_attrs.keys() <= {"key", "status", "reason"}
            assert trial.distributions is kept[0].distributions
            assert trial.params is mirrored.params
            assert trial.constraints == mirrored.constraints
        # As much again are Optuna's two indexes of its trials.
        assert max(own_bytes(kept)) < 800
        assert ran.outcome.rows is not None
        assert ran.outcome.rows["key"].to_pylist() == [trial.user_attrs["key"] for trial in kept]
        gone = {"key": "0" * 32, "status": "error", "reason": "its file is gone"}
        assert ran._parts.answers.table([gone]).to_pylist() == [gone]
        with_others = ran._parts.answers.table([gone, kept[0].user_attrs]).to_pylist()
        assert {name: with_others[0][name] for name in gone} == gone
        assert with_others[0]["step_time_s"] is None
        assert with_others[1] == ran.outcome.rows[:1].to_pylist()[0]
    stored = optuna.load_study(study_name="study", storage=elsewhere[0].partition("=")[2]).trials if database else None
    for trial in stored or trials(tmp_path / "study/_study.journal"):
        assert {"key", "status", "step_time_s", "parallel.tp"} <= trial.user_attrs.keys(), "other programs read the whole row"


def test_a_trial_of_another_program_that_is_no_trial_counts_as_failed(tmp_path: Path) -> None:
    study(tmp_path, "search.n_trials=3")
    times = dict.fromkeys(("datetime_start", "datetime_complete"), "2026-01-01T00:00:00")
    line = {"op_code": 4, "worker_id": "w", "study_id": 0, **times, "state": 1, "user_attrs": {"key": 7, "status": []}}
    with (tmp_path / "study/_study.journal").open("a") as file:
        for value in (float("nan"), "much", None):
            file.write(json.dumps({**line, "value": value}) + "\n")
    more = study(tmp_path, "search.n_trials=8")
    assert more.code == 0
    assert "5 trials: 5 fit" in more.out
    assert len(trials(tmp_path / "study/_study.journal")) == 8


def test_a_trial_that_raises_is_a_row_with_its_error_and_fail_fast_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad_day(found: Any, layouts: Any, **given: Any) -> Any:
        if (layouts.tp == 8).any():
            raise RuntimeError("a bad day")
        return price(found, layouts)

    monkeypatch.setattr(table, "price", bad_day)
    found = study(tmp_path, "search.n_trials=60")
    failed = [t for t in found.trials if t.state == optuna.trial.TrialState.FAIL]
    assert failed
    assert all(t.params["parallel.tp"] == 8 and "a bad day" in t.user_attrs["reason"] for t in failed)
    assert "trial failed: RuntimeError: a bad day" in found.err
    assert len(found.trials) == 60
    with pytest.raises(RuntimeError, match="a bad day"):
        study(tmp_path, "search.n_trials=60", "search.fail_fast=true", name="fast")


def test_progress_says_what_is_done_the_best_the_time_left_and_what_was_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_run, "Progress", partial(Progress, every=0.0))
    lines = study(tmp_path, "search.n_trials=60", "search.prune=false").err.splitlines()
    line = next(line for line in lines if line.startswith("40 of 60 trials "))
    rejected = r"[\d,]+ rejected: needs more memory than hw\.memory\.usable"
    assert re.fullmatch(rf"40 of 60 trials \(67%\), about [\d,]+ s left; best step_time_s [\d.,]+, {rejected}", line)


# What pruning does; the law that it rests on is in test_search_bounds.py.


def test_pruning_finds_the_proven_winner_and_says_what_it_skipped(tmp_path: Path, whole_grid: Rows) -> None:
    expected = whole_grid
    best = min(row["step_time_s"] for row in expected.values() if row["fits"])
    found = study(tmp_path, "search.prune=true", "search.n_trials=100000")
    assert min(row["step_time_s"] for row in found.rows if row["fits"]) == best
    assert len(found.rows) < len(expected)
    skipped = re.search(
        r"([\d,]+) of ([\d,]+) layouts skipped: ([\d,]+) cannot meet the constraints, "
        r"a lower bound shows that ([\d,]+) cannot win; the winner is proven",
        found.out,
    )
    assert skipped
    both, total, infeasible, beaten = (int(group.replace(",", "")) for group in skipped.groups())
    assert both == infeasible + beaten == len(expected) - len(found.rows)
    assert total == len(expected)
    assert sum(not row["fits"] for row in found.rows) <= 10, "what does not fit is skipped once something fits"
    assert infeasible + sum(not row["fits"] for row in found.rows) == sum(not row["fits"] for row in expected.values())


@pytest.mark.parametrize(
    ("column", "sign", "limit"),
    [
        ("mfu", ">=", 0.34),
        ("cost_usd", "<=", 0.9),
        ("tokens_per_s", ">=", 5e5),
        ("parallel.tp", "<=", 2),
        ("peak_memory_bytes", "<=", 4e10),
    ],
)
def test_what_cannot_meet_a_constraint_is_skipped_and_what_can_is_not(
    tmp_path: Path, column: str, sign: str, limit: float, whole_grid: Rows
) -> None:
    every = whole_grid
    meets = {key for key, row in every.items() if row["fits"] and (row[column] <= limit if sign == "<=" else row[column] >= limit)}
    # energy has no bound, so that nothing but the constraint leaves layouts out
    options = ("search.objectives=[energy_j]", f'search.constraints=["{column}{sign}{limit}"]', "search.prune=true")
    found = study(tmp_path, *options, "search.sampler=random", "search.n_trials=100000")
    assert {t.user_attrs["key"] for t in found.trials if all(excess <= 0 for excess in t.constraints.values())} == meets
    assert 0 < len(meets) < len(found.rows) < len(every)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "brute_force"])
def test_a_study_that_prunes_goes_on_as_if_it_had_not_stopped(tmp_path: Path, sampler: str) -> None:
    options = ("search.prune=true", f"search.sampler={sampler}", TWO)
    study(tmp_path, "search.n_trials=27", *options, name="twice")
    twice, once = study(tmp_path, "search.n_trials=55", *options, name="twice"), study(tmp_path, "search.n_trials=55", *options)
    assert essence(twice.trials) == essence(once.trials)


def test_only_what_fits_is_proposed_once_something_fits(tmp_path: Path, whole_grid: Rows) -> None:
    found = study(tmp_path, "search.sampler=random", "search.n_trials=100000")
    expected = whole_grid
    fit = {key for key, row in expected.items() if row["fits"]}
    assert fit <= {row["key"] for row in found.rows}
    assert len(found.rows) < len(fit) + 10
    assert f"{len(expected) - len(found.rows):,} of {len(expected):,} layouts skipped" in found.out
    assert len(study(tmp_path, "search.sampler=random", "search.n_trials=100000", "search.prune=false", name="whole").rows) == len(expected)


def test_an_unfinished_search_says_by_how_much_the_best_may_be_beaten(tmp_path: Path, whole_grid: Rows) -> None:
    found = study(tmp_path, "search.prune=true", "search.n_trials=10")
    line = next(line for line in found.out.splitlines() if "skipped" in line)
    assert "the best may be beaten by" in line
    gap = float(line.split(" by ")[-1].removesuffix(" %")) / 100
    seen = min(row["step_time_s"] for row in found.rows if row["fits"])
    true = min(row["step_time_s"] for row in whole_grid.values() if row["fits"])
    assert true >= seen * (1 - gap - 1e-3)


def test_the_front_survives_pruning(tmp_path: Path) -> None:
    objectives = "search.objectives=[step_time_s,hw.num_gpus]"
    space = ("model=llama3_1_8b", "hw.num_gpus=16,32", "parallel.tp=all", "parallel.pp=all", "parallel.recompute=all")
    whole = study(tmp_path, objectives, "search.sampler=brute_force", "search.n_trials=100000", space=space, name="whole")
    pruned = study(tmp_path, objectives, "search.prune=true", "search.n_trials=100000", space=space, name="pruned")

    def front(found: Any) -> set[tuple[float, int]]:
        points = {(r["step_time_s"], r["hw.num_gpus"]) for r in found.rows if r["fits"]}
        return {p for p in points if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points)}

    assert front(pruned) == front(whole)
    assert len(pruned.rows) < len(whole.rows)


# Wrong input, and storages that fail.


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("search.objectives=[step_tim_s]", "did you mean 'step_time_s'"),
        ("search.objectives=[]", "at least one column"),
        ("search.objectives=[ttft_s]", "has no value in this workload"),
        ('search.constraints=["__import__(1)"]', "is no constraint"),
        ('search.constraints=["peak_memory_bytes<=much"]', "peak_memory_bytes<=much"),
        ('search.constraints=["peak_memory<=1"]', "did you mean"),
        ('search.constraints=["step_time_s<=nan"]', "step_time_s<=nan"),
        ('search.constraints=["mfu<=inf"]', "mfu<=inf"),
        ("search.sampler=cmaes", "no key is an interval"),
        ("hw.memory.bandwidth=interval(-5,6e12)", "hw.memory.bandwidth"),
        ("hw.sms=interval(100.2,100.9)", "whole numbers"),
        ("hw.network.dimensions.7.bandwidth=interval(1e11,9e11)", "'7' is no index of a list of 2"),
        ("search.launcher_address=tcp://127.0.0.1:1", "loky has none"),
        ("search.storage=mysqlish://nowhere/x", "search.storage"),
        ("search.storage=/proc/nothing/_study.journal", "search.storage: /proc/nothing/_study.journal"),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path: Path, argument: str, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the words are compared below
        study(tmp_path, argument, "search.n_trials=5")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_interval_may_change_which_layouts_are_legal(tmp_path: Path) -> None:
    space = ("model=llama3_1_8b", "hw.num_gpus=64", "model.num_hidden_layers=interval(6,40)", "parallel.pp=all", "parallel.vpp=all")
    found = study(tmp_path, "search.n_trials=40", space=space)
    layers = {trial.params["model.num_hidden_layers"] for trial in found.trials}
    assert len(layers) > 10
    assert all(row["status"] in ("ok", "oom") for row in found.rows)
    assert max(row["parallel.pp"] for row in found.rows) > 6, "deeper models have longer pipelines"


def test_an_interval_needs_optuna() -> None:
    with pytest.raises(ValueError, match=r"search=optuna"):
        plan(read(["hw.memory.bandwidth=interval(1e12,2e12)"]))
    with pytest.raises(ValueError, match=r"allowed for hw\.num_gpus"):
        read(["hw.num_gpus=interval(8,64)"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("parallel.cp=1,2",), "its space has changed: parallel.cp was not searched"),
        ((TWO,), "its objectives have changed"),
        (('search.constraints=["mfu>=0.1"]',), "its constraints have changed"),
        (("workload.seq_len=4096",), "its base configuration has changed"),
    ],
)
def test_a_study_that_has_changed_is_refused_and_kept(tmp_path: Path, change: tuple[str, ...], words: str) -> None:
    before = study(tmp_path, "search.n_trials=12")
    with pytest.raises(ValueError, match=re.escape(words)):
        study(tmp_path, "search.n_trials=20", *change)
    assert len(before.trials) == 12
    assert essence(study(tmp_path, "search.n_trials=12").trials) == essence(before.trials)


@pytest.mark.parametrize(("key", "value", "words"), [("format", 0, "in a form that this one has not"), ("code", "old", "by other code")])
def test_a_storage_of_an_older_version_is_refused_and_kept(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = study(tmp_path, "search.n_trials=12").folder / "_study.journal"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "rapid_dse" in line.get("user_attr", {}):
            line["user_attr"]["rapid_dse"][key] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=re.escape(words)):
        study(tmp_path, "search.n_trials=20")
    assert len(trials(path)) == 12


def test_a_journal_that_is_none_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a journal\nat all\n")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        study(tmp_path, f"search.storage={path}")
    assert path.read_text() == "not a journal\nat all\n"


def test_half_a_line_of_a_killed_writer_is_cut_off(tmp_path: Path) -> None:
    path = study(tmp_path, "search.n_trials=12").folder / "_study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole[:-700])
    again = study(tmp_path, "search.n_trials=30")
    assert len(again.trials) == 30
    assert essence(again.trials) == essence(study(tmp_path, "search.n_trials=30", name="whole").trials)


def test_a_locked_journal_is_reported_and_a_dead_process_s_lock_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study(tmp_path, "search.n_trials=12").folder / "_study.journal"
    link = Path(f"{path}.lock")
    host, pid, _ = journal.process_name().rsplit(":", 2)
    os.symlink(f"{host}:{pid}:1", link)  # another process had this number before
    assert len(study(tmp_path, "search.n_trials=15").trials) == 15
    assert not link.is_symlink()
    os.symlink(journal.process_name(), link)
    monkeypatch.setattr(journal, "LOCKED_SECONDS", 0.2)
    with pytest.raises(ValueError, match="held by another process"):
        study(tmp_path, "search.n_trials=20")
    link.unlink()
    assert len(study(tmp_path, "search.n_trials=20").trials) == 20


def test_a_database_keeps_a_study_and_says_when_it_is_locked_or_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.db"
    first = study(tmp_path, "search.n_trials=8", f"search.storage=sqlite:///{path}")
    assert first.code == 0
    same = study(tmp_path, "search.n_trials=8", name="journal")
    stored = optuna.load_study(study_name="study", storage=f"sqlite:///{path}").trials
    assert essence(stored) == essence(same.trials)
    with pytest.raises(ValueError, match=r"search\.storage.*readonly"):
        study(tmp_path, "search.n_trials=12", f"search.storage='sqlite:///file:{path}?mode=ro&uri=true'")
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(storage, "LOCKED_SECONDS", 0.2)
        with pytest.raises(ValueError, match=r"search\.storage.*locked"):
            study(tmp_path, "search.n_trials=12", f"search.storage='sqlite:///{path}?timeout=0.1'")
    assert len(optuna.load_study(study_name="study", storage=f"sqlite:///{path}").trials) == 8


@pytest.mark.parametrize("trials", [0, 1])
def test_another_program_s_study_is_left_alone(tmp_path: Path, trials: int) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    own = optuna.create_study(study_name="study", storage=url, direction="maximize")
    own.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
    with pytest.raises(ValueError, match="which rapid_dse did not make"):
        study(tmp_path, "search.n_trials=8", f"search.storage={url}")
    assert len(optuna.load_study(study_name="study", storage=url).trials) == trials


def test_a_database_of_another_optuna_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    study(tmp_path, "search.n_trials=4", f"search.storage=sqlite:///{path}")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(ValueError, match=r"search\.storage: .*study\.db.*upgrade"):
        study(tmp_path, "search.n_trials=8", f"search.storage=sqlite:///{path}")
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM trials").fetchone() == (4,)


def test_trials_that_another_program_left_running_are_closed(tmp_path: Path) -> None:
    from datetime import datetime, timedelta

    path = study(tmp_path, "search.n_trials=12").folder / "_study.journal"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    left = optuna.create_study(study_name="study", storage=storage, load_if_exists=True)
    running = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    running.datetime_start = datetime.now() - timedelta(hours=3)
    left.add_trial(running)
    found = study(tmp_path, "search.n_trials=20")
    assert "1 trials that another program began" in found.err
    assert [t.state.is_finished() for t in found.trials] == [True] * 20


# Parts.


def test_the_nearest_layout_is_the_same_where_it_is_legal_and_near_where_it_is_not() -> None:
    with hydra_ready():
        space = SearchSpace(axes(read(["search=optuna", *SPACE])))
    variant = next(iter(space.variants()))
    free = np.zeros(len(variant.pool), bool)
    for row in (0, 7, len(variant.pool) - 1):
        labels = variant.points.labels(row)
        assert variant.points.nearest(labels, free) == row
        barred = free.copy()
        barred[row] = True
        other = variant.points.nearest(labels, barred)
        assert other is not None
        assert other != row
    assert variant.points.nearest(variant.points.labels(0), ~free) is None
    rule, _ = broken_rules(variant.pool.layouts, variant.setting.scenario)
    assert (rule < 0).all()


def test_constraints_are_parsed_with_units_and_signs() -> None:
    aims = read_aims(["-tokens_per_s_per_gpu", "hw.num_gpus"], ["fits", "peak_memory_bytes <= 64 GiB", "mfu>=0.4"], [])
    assert [o.direction for o in aims.objectives] == ["maximize", "minimize"]
    fits, peak, mfu = aims.constraints
    row = {"peak_memory_bytes": 32 * 2.0**30, "mfu": 0.2}
    assert fits.excess(row, 16 * 2.0**30) == 1.0
    assert peak.excess(row, 1.0) == -0.5
    assert mfu.excess(row, 1.0) == pytest.approx(0.5)


def test_labels_tell_true_from_one() -> None:
    assert Choice("k", (1, True, "1", [1, 2])).labels == (1, True, "1", "[1, 2]")
    assert Choice("k", (1, True)).index(True) == 1
