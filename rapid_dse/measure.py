"""``python -m rapid_dse.measure --out NAME``: times the kernels of a GPU and writes it as a chip, ``conf/hw/NAME.yaml``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    import pandas as pd

EPILOG = """\
On a machine with a GPU and PyTorch (pip install 'rapid-dse[measure]') it times matrix products by shape and precision, attention, copies
and small kernels, launches, all-reduces where there are several GPUs, and what loads of 2 s take (nvidia-ml-py), within --seconds. From
that it fits what kernels show of a chip, says how well half of the shapes predict the other half, and writes conf/hw/NAME.yaml and
conf/hw/NAME_kernels.csv below the current folder: hw=NAME, and hw.operator_model=measured hw.measured_table=conf/hw/NAME_kernels.csv.
What is not measured is the chip's that it is like (--like).
--recorded takes kernels that were timed before in place of a GPU, tables with the columns of such a file: kind, precision, m, n, k ... and
measured.time_s (s); or of loads: op, flops, bytes, time_s, energy_j. --device cpu times the same kinds of kernels, small ones, on the
CPU: that shows that timing works, and only the table is written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return guarded(run, sys.argv[1:] if argv is None else argv)


def run(argv: Sequence[str]) -> int:
    """Does what the command line says.

    Raises:
        ValueError: one line: no GPU, no PyTorch, a table that is none, a name that is taken.
    """
    parser = Parser(prog="python -m rapid_dse.measure", description=__doc__, epilog=EPILOG)
    parser.add_argument("--out", metavar="NAME", required=True, help="name of the option of hw")
    parser.add_argument("--recorded", metavar="FILE", nargs="+", type=Path, help="tables of measured kernels and loads in place of a GPU")
    parser.add_argument("--like", metavar="CHIP", help="the option of hw that the chip is like (default: what its name says)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="what is timed (default: cuda)")
    parser.add_argument("--seconds", type=float, default=240.0, help="most seconds that timing takes (default: 240)")
    parser.add_argument("--force", action="store_true", help="replace files of that name")
    parser.takes_json()
    options = parser.parse_args(argv)
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", options.out) is None:
        raise ValueError(f"--out {options.out}: allowed: the name of an option, letters, digits, _, - and . alone")
    if not 1 <= options.seconds <= 86400:
        raise ValueError(f"--seconds {options.seconds:g}: allowed: 1 to 86400")
    folder = Path("conf/hw")
    for path in (folder / f"{options.out}.yaml", folder / f"{options.out}_kernels.csv"):
        if path.exists() and not options.force:
            raise ValueError(f"{path}: is there already; allowed: --out with another name, or --force")
    kernels, loads, facts = _recorded(options.recorded) if options.recorded else _timed(options)
    told = _written(options, folder, kernels, loads, facts)
    print(json.dumps(told) if options.json else _said(told))
    return 0


def _recorded(paths: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Kernels, loads, and what the tables say of the chip; of rows that a table flags as suspicious too."""
    import pandas as pd

    from rapid_dse.analysis.kernels import with_chips
    from rapid_dse.analysis.measured_energy import is_loads
    from rapid_dse.config.table_file import read_table

    tables = [(path, read_table(path)) for path in paths]
    loads = [table for _, table in tables if is_loads(table)]
    kernels = [with_chips(table, path) for path, table in tables if not is_loads(table)]
    if not kernels:
        raise ValueError(f"--recorded {paths[0]}: has no kernels; allowed: a table with kind and measured.time_s among its columns")
    recorded_kernels = pd.concat(kernels, ignore_index=True)
    names = sorted(recorded_kernels["hw"].astype(str).unique())
    if len(names) > 1:
        raise ValueError(f"--recorded {paths[0]}: has kernels of {', '.join(names)}; allowed: those of one chip")
    return (
        recorded_kernels,
        pd.concat(loads, ignore_index=True) if loads else pd.DataFrame(),
        {"name": names[0], "source": f"recorded in {paths[0].name}"},
    )


def _timed(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Kernels, loads, and what the driver says of the chip; a line on standard error says how far it is."""
    import pandas as pd

    from rapid_dse.analysis.measuring import all_reduce_timers
    from rapid_dse.analysis.measuring.kernel_timers import KernelTimers

    timers = KernelTimers(options.device, options.out)
    facts = timers.facts()
    begin, rows = time.monotonic(), []
    for row in timers.every():
        rows.append(row)
        if time.monotonic() - begin > options.seconds:
            print(f"measure: {options.seconds:g} s are over, {len(rows)} kernels timed", file=sys.stderr)
            break
    if timers.left_out:
        print(f"measure: {len(timers.left_out)} kernels left out, such as {timers.left_out[0]}", file=sys.stderr)
    if not any(row["kind"] == "gemm" for row in rows):
        raise ValueError(
            f"no product was timed; allowed: a longer --seconds, another GPU{': ' + timers.left_out[0] if timers.left_out else ''}"
        )
    loads: list[dict[str, Any]] = []
    if options.device == "cuda":
        try:
            rows += all_reduce_timers.all_reduces(options.out)
        except ValueError as error:  # what was timed before stays
            print(f"measure: {error}", file=sys.stderr)
        loads, limit = _power(options.out)
        facts |= limit
    facts["source"] = f"{facts['name']}, {timers.common['software']}, {time.strftime('%Y-%m-%d')}"
    return pd.DataFrame(rows), pd.DataFrame(loads), facts


def _power(name: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Loads and the power limit, none where nothing meters them, which a line on standard error says."""
    from rapid_dse.analysis.measuring import power_meter

    nvml = power_meter.meter()
    if nvml is None:
        print(f"measure: {power_meter.NO_METER}", file=sys.stderr)
        return [], {}
    try:
        return power_meter.measured_power(nvml, name)
    except ValueError as error:
        print(f"measure: {error}", file=sys.stderr)
        return [], {}


def _written(
    options: argparse.Namespace, folder: Path, kernels: pd.DataFrame, loads: pd.DataFrame, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes the table and the chip; what is said of them."""
    from rapid_dse.analysis.chips import chips
    from rapid_dse.analysis.measuring import chip_option
    from rapid_dse.analysis.measuring.chip_constants import fit_chip
    from rapid_dse.analysis.measuring.chip_joules import fit_joules
    from rapid_dse.sweep.places import home

    told: dict[str, Any] = {"option": options.out, "kernels": len(kernels), "loads": len(loads), "source": facts["source"]}
    if options.device == "cpu" and not options.recorded:
        return {**told, "table": str(chip_option.write_table(folder, options.out, kernels)), "file": None}
    base = chip_option.like(sorted(path.stem for path in (home() / "conf/hw").glob("*.yaml")), options.like, str(facts["name"]))
    hw = chip_option.with_facts(chips({base})[base], facts)
    joules: dict[str, float] = {}
    if len(loads):
        energy, joules = fit_joules(hw, loads)
        hw = hw.model_copy(update={"energy": energy})
    fit = chip_option.named(fit_chip(hw, kernels), options.out)
    table = chip_option.write_table(folder, options.out, kernels)
    file = chip_option.write_option(folder, base, fit, chip_option.remarks(fit, base, str(facts["source"]), table, joules))
    errors = json.loads(fit.errors.reset_index().to_json(orient="records"))
    errors_held_out = {"mape": fit.held_out, "rows": fit.rows, "unpriced": fit.unpriced, "errors": errors}
    return {
        **told,
        "table": str(table),
        "file": str(file),
        "like": base,
        "fitted": fit.fitted,
        "joules": joules,
        "held_out": errors_held_out,
    }


def _said(told: dict[str, Any]) -> str:
    """What was written, in lines."""
    lines = [f"{told['kernels']} kernels and {told['loads']} loads: {told['source']}"]
    if told["file"] is None:
        return "\n".join([*lines, f"written: {told['table']}; of a CPU no chip is written"])
    import pandas as pd

    errors_held_out = told["held_out"]
    table = pd.DataFrame(errors_held_out["errors"])[["kind", "precision", "n", "mape", "median", "bias"]]
    mean, kernels = 100 * errors_held_out["mape"], errors_held_out["rows"]
    lines.append(f"half of the shapes, predicted from the other half: mean error {mean:.1f} % of {kernels} kernels")
    lines.append(table.to_string(index=False, float_format="{:.3f}".format))
    lines.append(
        f"as {told['like']}, but for: " + ", ".join(f"{key} {value:.3g}" for key, value in {**told["fitted"], **told["joules"]}.items())
    )
    lines.append(f"written: {told['file']} (hw={told['option']}), {told['table']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
