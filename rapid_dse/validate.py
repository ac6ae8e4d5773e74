"""``python -m rapid_dse.validate [CASES …]``: predicted against measured, a suite a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    import pandas as pd

    from rapid_dse.analysis.scores import Score
    from rapid_dse.analysis.validation import Validated

EPILOG = """\
CASES are tables (CSV or Parquet) of measured runs: override keys as columns, suite, software, measured.step_time_s (s) and, where known,
group, measured.status and measured.peak_memory_bytes. A table with a kind column is one of single kernels and collectives.
Without CASES: the tables of measured runs beside the checkout. Each suite has two lines: the shipped profiles, and fits that had not
seen the model of the run that they predict (cross-validated in folds by model within each software profile)."""
FIGURES = ("n", "missing", "mape", "median", "p90", "worst", "rho", "regret", "fit_accuracy", "memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return guarded(_validate, sys.argv[1:] if argv is None else argv)


def _validate(argv: Sequence[str]) -> int:
    parser = Parser(prog="python -m rapid_dse.validate", description=__doc__, epilog=EPILOG)
    parser.add_argument("cases", nargs="*", help="tables of measured runs")
    parser.add_argument("--shipped", action="store_true", help="the shipped profiles alone, without the folds")
    parser.add_argument("--out", default="results/validation", help="folder of the picture and of the worst cases")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the folds")
    arguments = parser.parse_args(argv)
    paths = [Path(path) for path in arguments.cases] or _beside_the_checkout()
    for path in paths:
        if _is_kernels(path):
            _print_kernels(path)
        else:
            _print_cases(path, arguments)
    return 0


def _beside_the_checkout() -> list[Path]:
    from rapid_dse.sweep.places import home

    data = home().parent / "shared" / "data"
    found = [path for name in ("training_cases.csv", "kernels.csv", "kernels_fwd_bwd_a100.csv") if (path := data / name).exists()]
    if not found:
        raise ValueError(f"no tables of measured runs in {data}; name them: python -m rapid_dse.validate CASES …")
    return found


def _is_kernels(path: Path) -> bool:
    from rapid_dse.config.table_file import read_table

    return "kind" in read_table(path).columns


def _print_kernels(path: Path) -> None:
    from rapid_dse.analysis.chips import chips
    from rapid_dse.analysis.validation import validate_kernels

    for model in ("tiled", "roofline"):
        table = validate_kernels(path, chips(), model)
        print(f"\n{path.name}: hw.operator_model={model}, |predicted / measured − 1| over all shapes")
        print(table.to_string(float_format="{:.3f}".format))


def _print_cases(path: Path, arguments: argparse.Namespace) -> None:
    from rapid_dse.analysis.validation import parity_picture, validate_cases

    found = validate_cases(path, arguments.jobs, folds=not arguments.shipped)
    print(f"{path.name}: {len(found.cases)} cases")
    print(_table(found, arguments.shipped).to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for suite in found.cases["suite"].unique():
        found.worst(str(suite)).to_csv(out / f"worst_{suite}.csv", index=False, float_format="%.5g")
    picture = f"picture: {out / (path.stem + '.png')}"
    try:
        parity_picture(found, out / f"{path.stem}.png")
    except ImportError:
        picture = "no picture: it needs matplotlib (pip install 'rapid-dse[plots]')"
    print(f"{picture}; the 20 worst cases of each suite by term: {out}/worst_SUITE.csv")


def _table(found: Validated, shipped_alone: bool) -> pd.DataFrame:
    import pandas as pd

    lines: list[dict[str, object]] = []
    unseen: dict[str, Score] = {} if shipped_alone else found.scores(found.unseen)
    for suite, shipped in found.scores(found.shipped).items():
        lines.append({"suite": suite, "profile": "shipped"} | {name: getattr(shipped, name) for name in FIGURES})
        if suite in unseen:
            lines.append({"suite": suite, "profile": "unseen model"} | {name: getattr(unseen[suite], name) for name in FIGURES})
    return pd.DataFrame(lines)


if __name__ == "__main__":
    sys.exit(main())
