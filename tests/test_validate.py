"""Scores by hand, and the command on runs that the program made itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_calibrate import spoiled, table

from rapid_dse import validate
from rapid_dse.analysis.scores import score


def cases(measured: list[float], group: str = "g") -> pd.DataFrame:
    return pd.DataFrame({"group": group, "measured.status": "ok", "measured.step_time_s": measured})


EXPECTED = pd.Series([0.6, 0.4, *[np.nan] * 7])  # of the first two runs alone something is expected


def test_errors_ranks_and_regret_by_hand() -> None:
    truth = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    predicted = pd.Series([2.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])  # the two fastest change places
    found = score(cases(truth), predicted, pd.Series([True] * 8), pd.Series([np.nan] * 8), EXPECTED[:8])
    assert found.mape == pytest.approx((1.0 + 0.5) / 8)
    assert (found.within, found.told) == (0.0, 2)
    assert found.median == 0
    assert found.worst == 1.0
    assert found.rho == pytest.approx(1 - 6 * 2 / (8 * 63))
    assert found.regret == pytest.approx(1.0)  # it would run the second, which takes twice the fastest
    assert np.isnan(found.fit_accuracy)


def test_a_layout_that_does_not_fit_is_not_chosen_and_a_missing_one_counts_in_full() -> None:
    truth = [float(second) for second in range(1, 10)]
    predicted = pd.Series([1.0, *truth[1:8], np.nan])
    found = score(cases(truth), predicted, pd.Series([False] + [True] * 8), pd.Series([np.nan] * 9), EXPECTED)
    assert found.missing == 1
    assert found.mape == pytest.approx(1 / 9)
    assert found.regret == pytest.approx(1.0)


def test_out_of_memory_runs_are_judged_by_fit_alone() -> None:
    peaks = [4e9, 5e9, np.nan, np.nan]
    frame = cases([1.0, 2.0, np.nan, np.nan]).assign(**{"measured.status": ["ok", "ok", "oom", "oom"], "measured.peak_memory_bytes": peaks})
    found = score(
        frame, pd.Series([1.0, 2.0, 3.0, 4.0]), pd.Series([True, True, False, True]), pd.Series([5e9, 5e9, 9e10, 9e10]), EXPECTED[:4]
    )
    assert found.n == 2
    assert (found.within, found.told) == (1.0, 2)
    assert found.fit_accuracy == pytest.approx(0.75)
    assert found.memory == pytest.approx(0.125)


def test_the_command_prints_a_suite_twice_and_writes_picture_and_worst_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table(40).assign(suite="made").to_csv("runs.csv", index=False)
    assert validate.main(["runs.csv", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines() if line.strip().startswith("made")]
    assert [line[1] for line in lines] == ["shipped", "unseen"]
    assert float(lines[1][line_of(printed, "mape") + 1]) < 0.1  # a fit to the other model finds what made these runs
    worst = pd.read_csv("results/validation/worst_made.csv")
    assert len(worst) == 20
    terms = worst[[column for column in worst if column.endswith("_s") and column not in ("measured.step_time_s", "predicted_s")]]
    np.testing.assert_allclose(terms.sum(axis=1), worst["predicted_s"], rtol=1e-3)
    assert (tmp_path / "results/validation/runs.png").stat().st_size > 10_000
    (tmp_path / "results/validation/runs.png").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert validate.main(["runs.csv", "--shipped"]) == 0
    assert "no picture: it needs matplotlib" in capsys.readouterr().out
    assert not (tmp_path / "results/validation/runs.png").exists()


def line_of(printed: str, column: str) -> int:
    header = next(line for line in printed.splitlines() if "mape" in line)
    return header.split().index(column)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no column", "has no column measured.step_time_s"),
        ("all out of memory", "no row ran (40 oom)"),
        ("not a number", "row 8 ran but measured.step_time_s=nan"),
        ("milliseconds", "are the step times in seconds"),
        ("kiloseconds", "are the step times in seconds"),
        ("text", "measured.step_time_s='fast' is no number"),
        ("two rows", "2 rows that ran; needed: at least 3"),
        ("no suite", "has no column suite"),
        ("unknown key", "parallel.tpp"),
    ],
)
def test_a_table_that_cannot_be_validated_is_one_line(
    kind: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = spoiled(kind)
    frame = frame if kind == "no suite" else frame.assign(suite="made")
    frame = frame.assign(**{"parallel.tpp": 3}) if kind == "unknown key" else frame
    frame.to_csv("runs.csv", index=False)
    assert validate.main(["runs.csv", "--shipped"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_no_tables_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rapid_dse.sweep.places.home", lambda: tmp_path)
    assert validate.main([]) == 2
    assert "name them" in capsys.readouterr().err
