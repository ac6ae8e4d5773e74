"""Published training runs: GPU-hours, MWh, W and J a token as predicted beside those that were published, and the factor between them.

  python benchmarks/published_runs.py [TABLE]

Each row of published_runs.csv is a run: its model, its layout (published, or assumed where nobody said), and what was published of it.
Predicted GPU-hours and MWh are those of the whole run with failures, restarts and checkpoints (workload.train_tokens, cluster=reference);
MWh, W and J a token are those of the GPUs. Nothing is tuned to these runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from rapid_dse.evaluate import evaluated
from rapid_dse.sweep.cases import Refused, read_cases

TABLE = Path(__file__).with_name("published_runs.csv")


def main() -> int:
    """Prints the table; the exit code."""
    refused = Refused()
    cases, groups = read_cases(sys.argv[1] if len(sys.argv) > 1 else TABLE, refused)
    found = evaluated(cases, groups, refused).table.to_pandas()
    tokens = found["tokens_per_s"] * found["step_time_s"]
    gpu_seconds = found["hw.num_gpus"] * found["train_time_s"]
    predicted = {
        "gpu_hours": gpu_seconds / 3600,
        "mwh": gpu_seconds * found["power_w_per_gpu"] / 3.6e9,
        "w_per_gpu": found["power_w_per_gpu"],
        "j_per_token": found["power_w_per_gpu"] * found["hw.num_gpus"] * found["step_time_s"] / tokens,
    }
    print("| run | layout | step | MFU | goodput | GPU-hours: predicted / published | MWh | W a GPU | J a token |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in range(len(found)):
        pairs = [_pair(predicted[name].iloc[row], found[f"published.{name}"].iloc[row]) for name in predicted]
        head = f"| {found['run'][row]} | {_layout(found.iloc[row])} | {found['step_time_s'][row]:.3g} s | {100 * found['mfu'][row]:.0f} % |"
        goodput = "" if pd.isna(found["goodput"][row]) else f"{100 * found['goodput'][row]:.1f} %"
        print(f"{head} {goodput} | {' | '.join(pairs)} |")
    for row in found.index[~found["status"].isin(["ok"])]:
        print(f"{found['run'][row]}: {found['status'][row]}, {found['reason'][row]}", file=sys.stderr)
    return 0


def _pair(predicted: float, published: float) -> str:
    if pd.isna(predicted):
        return ""
    if pd.isna(published):
        return _shown(predicted)
    return f"{_shown(predicted)} / {_shown(published)}: {predicted / published:.2f}"


def _shown(value: float) -> str:
    """Three digits; hundreds of thousands in millions."""
    return f"{value / 1e6:.3g} M" if value >= 1e5 else f"{value:,.0f}" if value >= 1e3 else f"{value:.3g}"


def _layout(row: pd.Series) -> str:
    degrees = [f"{name}{int(row[f'parallel.{name}'])}" for name in ("tp", "pp", "vpp") if row[f"parallel.{name}"] > 1]
    return f"{int(row['hw.num_gpus'])} {row['hw']} {row['software']} {' '.join(degrees)} zero{int(row['parallel.zero'])} ({row['layout']})"


if __name__ == "__main__":
    sys.exit(main())
