"""Fits the shipped inference profiles again to a table of measured requests and writes conf/software: run from the repository's root.

usage: python benchmarks/fit_serving.py ../shared/data/inference_cases.csv [PROFILE …]

Rows of multi-token prediction whose depth and acceptance are not told (spec=mtp) say nothing. Disaggregated systems are left to be
predicted: what they cost beyond the rest is queues and transfers, which no latency tells; of open loops the time to the first token is
fitted alone. Models are left out one after the other, to
see how the others' fit does on them.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rapid_dse.analysis.profile_file import with_fitted
from rapid_dse.analysis.serving_fit import Table, errors_of, fit, tables_of, with_values
from rapid_dse.analysis.serving_linear import left_out, linear
from rapid_dse.config.table_file import read_table
from rapid_dse.sweep.cases import Refused, group_cases


def main() -> None:
    frame, wanted = read_table(sys.argv[1]), sys.argv[2:]
    unknown = [name for name in frame.columns if name == "model.layer_types" and frame[name].isna().all()]
    frame = frame.drop(columns=unknown)
    if "parallel.prefill.workers" in frame:
        frame = frame[frame["parallel.prefill.workers"].isna()]
    if "spec" in frame:
        frame = frame[frame["spec"].ne("mtp")]
    for software in wanted or sorted(frame["software"].unique()):
        rewrite(software, frame[frame["software"] == software].reset_index(drop=True))


def rewrite(software: str, frame: pd.DataFrame) -> None:
    """Fits one profile, and puts the fitted values among its own settings."""
    refused: Refused = {}
    tables = tables_of(frame, group_cases(frame, refused))
    found = fit(tables)
    names = frame["model_name"] if "model_name" in frame else pd.Series("", index=frame.index)
    models = [str(names[int(table.rows[0])]) for table in tables]
    unseen = errors_unseen([replace(each, scenario=with_values(each.scenario, found.values)) for each in tables], models)
    tokens = np.abs(errors_of(tables, found.values, "tpot_s"))
    rates = np.abs(errors_of(tables, found.values, "tokens_per_s_per_gpu"))
    print(software, len(frame), "rows,", len(refused), "refused", dict(found.values), flush=True)
    for name, errors in (("tokens", tokens), ("rates", rates), ("tokens, models left out", np.abs(unseen))):
        if len(errors):
            print(f"   {name}: mean {errors.mean():.3f}, median {np.median(errors):.3f} of {len(errors)}", flush=True)
    about = [f"# fitted to {len(frame)} measured rows of {len(set(models))} models by benchmarks/fit_serving.py"]
    if len(unseen):
        about.append(f"# mean relative error of tpot on models that the fit had not seen: {np.abs(unseen).mean():.3g}")
    path = Path("conf/software") / f"{software}.yaml"
    kept = "\n".join(line for line in path.read_text().splitlines() if not re.match(r"# (fitted to|mean relative error)", line)) + "\n"
    path.write_text(with_fitted(kept, found.values, about))


def errors_unseen(tables: list[Table], models: list[str]) -> NDArray[np.float64]:
    """predicted / measured − 1 of the times between tokens by fits without their model; none where there is one model alone."""
    if len(set(models)) < 2:
        return np.zeros(0)
    of_row = [model for model, table in zip(models, tables, strict=True) for _ in table.rows]
    measured = np.concatenate([table.measured["tpot_s"] for table in tables])
    found = np.expm1(left_out(linear(tables), of_row)[:, 0] - np.log(measured))
    return np.asarray(found[np.isfinite(found)])


if __name__ == "__main__":
    main()
