"""A measured chip as an option of ``hw``: the file of the chip that it is like, with what was measured in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rapid_dse.analysis.measuring.chip_constants import ChipFit
from rapid_dse.config.hardware import Hardware
from rapid_dse.sweep.places import home

TABLE = "_kernels.csv"  # behind the option's name: the table of its kernels


def like(names: Sequence[str], wanted: str | None, seen: str) -> str:
    """The option that a chip is like: the one that is named, or the longest name that ``seen`` (what the driver or the table calls the
    chip) holds.

    Raises:
        ValueError: neither is an option.
    """
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"--like {wanted}: allowed: {', '.join(names)}")
        return wanted
    plain = seen.lower().replace(" ", "_").replace("-", "_")
    same_name = [name for name in names if name in plain]
    if not same_name:
        raise ValueError(f"{seen}: is none of the chips that are known; give the one that it is like: --like {', '.join(names)}")
    return max(same_name, key=len)


def with_facts(base: Hardware, facts: Mapping[str, Any]) -> Hardware:
    """The chip that the measured one is like, with what the driver says of it: SMs, clock, sizes of memory and L2, its power limit."""
    changed: dict[str, Any] = {}
    if facts.get("sms"):
        changed["sms"] = int(facts["sms"])
    if facts.get("memory"):
        size = float(facts["memory"])
        changed["memory"] = base.memory.model_copy(update={"capacity": max(size, base.memory.capacity * 0.5), "usable": size})
    if facts.get("l2"):
        changed["l2"] = base.l2.model_copy(update={"size": float(facts["l2"])})
    if facts.get("limit"):
        changed["energy"] = base.energy.model_copy(update={"tdp": float(facts["limit"])})
    return base.model_copy(update=changed)


def write_option(folder: Path, base: str, fit: ChipFit, said: Sequence[str]) -> Path:
    """Writes ``NAME.yaml`` into a folder of options of ``hw``; its path.

    Args:
        base: the option that the chip is like, whose file keeps what was not measured.
        said: lines about the measurement, for the head of the file.
    """
    content: dict[str, Any] = yaml.safe_load((home() / "conf/hw" / f"{base}.yaml").read_text(encoding="utf-8"))
    hw = fit.hardware
    content |= {"name": hw.name, "sms": hw.sms, "kernel_latency": _short(hw.kernel_latency)}
    content["memory"] = {name: _short(getattr(hw.memory, name)) for name in ("capacity", "usable", "bandwidth")}
    content["l2"] = {name: _short(getattr(hw.l2, name)) for name in ("size", "bandwidth")}
    content["efficiency"] = {name: _short(value) for name, value in hw.efficiency if value is not None}
    energy = hw.energy
    flop = {name: _short(joules) for name, joules in energy.flop.items()}
    content["energy"] = {"flop": flop, **{name: _short(getattr(energy, name)) for name in ("hbm", "l2", "idle", "tdp")}}
    head = "".join(f"# {line}\n" for line in said)
    path = folder / f"{hw.name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")
    return path


def write_table(folder: Path, name: str, rows: pd.DataFrame) -> Path:
    """Writes the measured kernels as a table that ``hw.measured_table`` takes; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{TABLE}"
    rows.assign(hw=name).to_csv(path, index=False, float_format="%.6g")
    return path


def remarks(fit: ChipFit, base: str, source: str, table: Path, joules: Mapping[str, float]) -> list[str]:
    """What the head of the file says: what was measured, how well it is predicted, and what is left of the chip that it is like."""
    constants = ", ".join(f"{key} {value:.3g}" for key, value in fit.fitted.items())
    lines = [
        f"Measured: {source}. What is not named here is {base}.yaml's.",
        f"Fitted to its kernels: {constants}.",
        f"Of half of the shapes, predicted by a fit to the other half: mean error {100 * fit.held_out:.1f} % of {fit.rows} kernels.",
    ]
    if joules:
        lines.append(
            f"Measured by its energy counter, J/FLOP, J/byte and W: {', '.join(f'{key} {value:.3g}' for key, value in joules.items())}."
        )
    return [*lines, f"hw.operator_model=measured hw.measured_table={table} prices products by the measured times themselves."]


def named(fit: ChipFit, name: str) -> ChipFit:
    """The fit under the name of its option."""
    return replace(fit, hardware=fit.hardware.model_copy(update={"name": name}))


def _short(value: float) -> float:
    """Four digits: what a measurement tells."""
    return float(f"{value:.4g}")
