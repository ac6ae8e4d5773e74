"""Fits the shipped inference profiles again to a table of measured requests and writes conf/software: run from the repository's root.

usage: python benchmarks/fit_serving.py ../shared/data/inference_cases.csv [PROFILE …]

Rows of multi-token prediction whose depth and acceptance are not told (spec=mtp) say nothing. Open loops and disaggregated systems are left
to be predicted: what they cost beyond the rest is queues and transfers, which no latency tells. Models are left out one after the other, to
see how the others' fit does on them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from rapid_dse.analysis.profile_file import with_fitted
from rapid_dse.analysis.serving_fit import errors_of, fit, held_out, tables_of
from rapid_dse.config.table_file import read_table
from rapid_dse.sweep.cases import Refused, group_cases


def main() -> None:
    frame, wanted = read_table(sys.argv[1]), sys.argv[2:]
    unknown = [name for name in frame.columns if name == "model.layer_types" and frame[name].isna().all()]
    frame = frame.drop(columns=unknown)
    for name in ("workload.request_rate", "parallel.prefill.workers"):
        if name in frame:
            frame = frame[frame[name].isna()]
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
    unseen = held_out(tables, models, found.values) if len(set(models)) > 1 else np.zeros(0)
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


if __name__ == "__main__":
    main()
