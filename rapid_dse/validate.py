"""``python -m rapid_dse.validate [CASES …]``: predicted against measured, a suite a line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    import pandas as pd

    from rapid_dse.analysis.scores import Score
    from rapid_dse.analysis.validation import Validated

EPILOG = """\
CASES are tables (CSV or Parquet) of measured runs: override keys as columns, suite, software, measured.step_time_s (s) and, where known,
group, measured.status and measured.peak_memory_bytes. Tables of single kernels (kind, measured.time_s), of whole steps on one GPU
(fwd_time_s, bwd_time_s ...), of single layers of experts and of latent attention (kind), of loads whose energy was measured, and of
serving (measured.tpot_s, measured.energy_j_per_token ...) are written to --out with predicted.<column> beside each measured column that
can be predicted, with a line of errors a kind; of serving also with two lines a suite as below. A folder stands for all tables in it.
Without CASES: the tables of measured runs beside the checkout. Each suite has two lines: the shipped profiles, and fits that had not
seen the model of the run that they predict (cross-validated in folds by model within each software profile). within: the share of the
runs whose error is at most the expected_error that was told of them (told: of how many); of unseen models it comes from the errors of the
other models alone."""
FIGURES = ("n", "missing", "mape", "median", "p90", "worst", "rho", "regret", "fit_accuracy", "memory", "within", "told")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return guarded(_validate, sys.argv[1:] if argv is None else argv)


def _validate(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m rapid_dse.validate", description=__doc__, epilog=EPILOG)
    parser.add_argument("cases", nargs="*", help="tables of measured runs")
    parser.add_argument("--shipped", action="store_true", help="the shipped profiles alone, without the folds")
    parser.add_argument("--out", default="results/validation", help="folder of the picture and of the worst cases")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the folds")
    parser.takes_json()
    arguments = parser.parse_args(argv)
    paths = [table for path in arguments.cases for table in _tables(Path(path))] or _beside_the_checkout()
    said = []
    for path in paths:
        told = _told(path, arguments)
        said.append(told.value)
        if not arguments.json:
            print("\n".join(told.lines))
    if arguments.json:
        print(json.dumps({"tables": said}))
    return 0


def _told(path: Path, arguments: argparse.Namespace) -> Told:
    """What is said of a table, by what it holds: training runs, single measurements, or requests."""
    from rapid_dse.analysis.measured_loads import can_fold
    from rapid_dse.config.table_file import read_table

    if _is_cases(path):
        return _cases(path, arguments)
    measured = _measured(path, Path(arguments.out))
    if not can_fold(read_table(path)):
        return measured
    served = _requests(path, arguments)
    return Told([*measured.lines, *served.lines], {**measured.value, **served.value})


def _requests(path: Path, arguments: argparse.Namespace) -> Told:
    """Predicted against measured requests, a suite a line; writes the worst loads of each."""
    from rapid_dse.analysis.serving_validation import validate_requests

    requests = validate_requests(path)
    table, out = requests.table(folds=not arguments.shipped), Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for suite in requests.cases["suite"].unique() if "suite" in requests.cases else ["all"]:
        requests.worst(str(suite)).to_csv(out / f"worst_{suite}.csv", index=False, float_format="%.5g")
    lines = ["by suite, mean and median, of the shipped profiles and of fits that had not seen the model:"]
    lines.append(table.to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    lines.append(f"the 20 worst loads of each suite by term of a token: {out}/worst_SUITE.csv")
    return Told(lines, {"suites": _records(table)})


@dataclass(frozen=True)
class Told:
    """What is said of a table: lines of text, and the same as plain values."""

    lines: Sequence[str]
    value: Mapping[str, Any]


def _tables(path: Path) -> list[Path]:
    """The tables of a folder, or the one that is named."""
    if not path.is_dir():
        return [path]
    paths = sorted(file for file in path.iterdir() if file.suffix.lower() in (".csv", ".parquet"))
    if not paths:
        raise ValueError(f"{path}: has no tables; allowed: a folder with files that end in .csv or .parquet")
    return paths


def _beside_the_checkout() -> list[Path]:
    from rapid_dse.sweep.places import home

    data = home().parent / "shared" / "data"
    folders = [
        path
        for name in ("training_cases.csv", "training_moe_cases.csv", "kernels.csv", "kernels_fwd_bwd_a100.csv", "h200/moe_mla.csv")
        if (path := data / name).exists()
    ]
    if not folders:
        raise ValueError(f"no tables of measured runs in {data}; name them: python -m rapid_dse.validate CASES …")
    return folders


def _is_cases(path: Path) -> bool:
    """Whether a table is one of training cases; one of measurements says of each row what kind it is, one of serving has no steps."""
    from rapid_dse.analysis.served_runs import is_served
    from rapid_dse.config.table_file import read_table

    table = read_table(path)
    return "kind" not in table and not is_served(table)


def _measured(path: Path, out: Path) -> Told:
    """Writes a table of measurements with its predictions; a line of errors a kind."""
    from rapid_dse.analysis.chips import chips
    from rapid_dse.analysis.measured_tables import chips_of, predict_table
    from rapid_dse.config.table_file import read_table

    table = read_table(path)
    predicted = predict_table(table, chips(chips_of(table)), str(path))
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{path.stem}.csv"
    if target.resolve() == path.resolve():
        raise ValueError(f"--out {out}: {target} is the table itself; allowed: another folder")
    predicted.table.to_csv(target, index=False, float_format="%.9g")
    lines, errors = [f"\n{path.name}: {len(predicted.table)} rows to {target}"], []
    if predicted.errors is not None and len(predicted.errors):
        lines += ["|predicted / measured − 1|:", predicted.errors.to_string(float_format="{:.3f}".format)]
        errors = _records(predicted.errors.reset_index())
    lines += [f"left out: {line}" for line in predicted.left_out]
    value = {"table": path.name, "rows": len(predicted.table), "out": str(target), "errors": errors, "left_out": list(predicted.left_out)}
    return Told(lines, value)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain values, null where there is none."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    return records


def _cases(path: Path, arguments: argparse.Namespace) -> Told:
    """Predicted against measured, a suite a line; writes the picture and the worst cases."""
    from rapid_dse.analysis.validation import parity_picture, validate_cases

    validated = validate_cases(path, arguments.jobs, folds=not arguments.shipped)
    table = _table(validated, arguments.shipped)
    lines = [f"{path.name}: {len(validated.cases)} cases", table.to_string(index=False, float_format="{:.3f}".format, na_rep="–")]
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for suite in validated.cases["suite"].unique():
        validated.worst(str(suite)).to_csv(out / f"worst_{suite}.csv", index=False, float_format="%.5g")
    picture = f"picture: {out / (path.stem + '.png')}"
    try:
        parity_picture(validated, out / f"{path.stem}.png")
    except ImportError:
        picture = "no picture: it needs matplotlib (pip install 'rapid-dse[plots]')"
    lines.append(f"{picture}; the 20 worst cases of each suite by term: {out}/worst_SUITE.csv")
    return Told(lines, {"table": path.name, "rows": len(validated.cases), "out": str(out), "suites": _records(table)})


def _table(validated: Validated, shipped_alone: bool) -> pd.DataFrame:
    import pandas as pd

    lines: list[dict[str, object]] = []
    unseen: dict[str, Score] = {} if shipped_alone else validated.scores(validated.unseen)
    for suite, shipped in validated.scores(validated.shipped).items():
        lines.append({"suite": suite, "profile": "shipped"} | {name: getattr(shipped, name) for name in FIGURES})
        if suite in unseen:
            lines.append({"suite": suite, "profile": "unseen model"} | {name: getattr(unseen[suite], name) for name in FIGURES})
    return pd.DataFrame(lines)


if __name__ == "__main__":
    sys.exit(main())
