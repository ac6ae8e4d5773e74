"""Fitting a software profile to a table of measured runs, and writing it as a YAML that composes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rapid_dse.analysis.fit import CHIP, Fit, Runs, fit, held_out
from rapid_dse.analysis.runs import LEAST_ROWS, PEAK, known_states, measured_runs, parameters_by_name, require_plausible, require_runs
from rapid_dse.config.software import FREE, FreeParameter, Software
from rapid_dse.model.operators import model_flops_per_token
from rapid_dse.simulate.results import FloatColumn
from rapid_dse.simulate.strain import nodes_of
from rapid_dse.sweep.cases import CaseGroup

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Options:
    """``names`` of the parameters to fit (None: all that the runs exercise), ``chip``: its efficiencies too, ``jobs``: processes for the
    folds that test the fit, ``least``: rows without which nothing is fitted."""

    names: Sequence[str] | None = None
    chip: bool = False
    jobs: int = 1
    least: int = LEAST_ROWS


@dataclass(frozen=True)
class Calibration:
    """A fitted profile: the fit, its error on runs that it had not seen, how many runs and models there were, and on which chips."""

    software: str
    base: Software
    fitted: Fit
    held_out_error: float
    rows: int
    models: int
    chips: tuple[str, ...]
    memory: Fit | None


def exercised(runs: Sequence[Runs]) -> list[str]:
    """Names of the free parameters that these runs can say something of: no pipeline, no pp parameter, and so on."""
    some = {
        name: any(_has(run, name) for run in runs) for name in ("tp", "cp", "pp", "dp", "zero0", "zero1", "zero12", "nodes", "piped_nodes")
    }
    fp8 = any(run.scenario.workload.precision == "fp8" for run in runs)
    asynchronous = any((run.pinned.get("async_tp", run.scenario.software.async_tp)) for run in runs)
    strains = some["piped_nodes"] and any(run.scenario.software.strain_changes for run in runs)  # no framework but one that is known to
    needs = {
        "fp8_cast_passes": fp8,
        "host_collective_layer": some["tp"],
        "dp_overlap": some["dp"],
        "scatter_overlap": some["zero0"] and some["zero1"],
        "parameter_gather_overlap": some["zero12"],
        "gather_calls_per_layer": some["zero12"] and some["nodes"],
        "tp_overlap": some["tp"] and asynchronous,
        "tp_backward_overlap": some["tp"],
        "cp_overlap": some["cp"],
        "pp_overlap": some["pp"],
        "send_receive": some["pp"],
        "fabric_efficiency": some["nodes"],
        "fabric_latency": some["nodes"],
        "node_skew": some["nodes"] and some["tp"],
        "strained_host_layer": strains and some["tp"],
        "strained_fabric_latency": strains,
        "strained_all_reduce_wait": strains and some["zero0"],
    }
    return [parameter.name for parameter in FREE if needs.get(parameter.name, True)]


def _has(run: Runs, name: str) -> bool:
    column = {field: np.asarray(getattr(run.layouts, field)) for field in ("tp", "cp", "pp", "dp", "zero")}
    several_nodes = nodes_of(run.scenario.hw, run.layouts) > 1
    masks = {
        "tp": column["tp"] > 1,
        "cp": column["cp"] > 1,
        "pp": column["pp"] > 1,
        "dp": column["dp"] > 1,
        "zero0": (column["dp"] > 1) & (column["zero"] == 0),
        "zero1": (column["dp"] > 1) & (column["zero"] == 1),
        "zero12": (column["dp"] > 1) & (column["zero"] >= 1) & (column["zero"] <= 2),
        "nodes": several_nodes,
        "piped_nodes": several_nodes & (column["pp"] > 1),
    }
    return bool(masks[name].any())


def calibrate(frame: pd.DataFrame, groups: list[CaseGroup], software: str, base: Software, source: str, options: Options) -> Calibration:
    """Fits the free parameters of ``base`` to the table's runs of ``software``.

    Args:
        frame: the table; groups: its rows by scenario; source: its name, for messages.
        options: which parameters, and how.

    Raises:
        ValueError: what the table lacks (see ``require_runs``), step times of another unit, an unknown parameter.
    """
    require_runs(frame, source, options.least)
    runs, known = measured_runs(frame, groups, software), measured_runs(*known_states(frame, groups), software)
    if not runs:
        raise ValueError(f"{source}: no legal training run has software={software}")
    require_plausible([implied_mfu(run) for run in runs], source)
    parameters = parameters_by_name(options.names or exercised(runs), CHIP) + (list(CHIP) if options.chip else [])
    first = fit(known, base, parameters)
    parameters = [parameter for parameter in parameters if parameter.name not in first.silent] or parameters
    fitted = fit(known, base, parameters) if first.silent else first
    fitted = replace(fitted, silent=first.silent)
    unseen = np.concatenate(held_out(runs, base, parameters, options.jobs, known))
    truth = np.concatenate([run.measured for run in runs])
    models = len({run.model for run in runs})
    error = float(np.abs(unseen / truth - 1).mean())
    chips = tuple(sorted({run.scenario.hw.name for run in runs}))
    return Calibration(software, base, fitted, error, len(truth), models, chips, _memory_fit(frame, groups, software, base))


def implied_mfu(run: Runs) -> NDArray[np.float64]:
    """Model FLOP utilisation that the measured step times of one group imply, ``(n_layouts,)``."""
    work, layouts = run.scenario.workload, run.layouts
    flops = model_flops_per_token(run.scenario.model, work.seq_len) * layouts.global_batch_size * float(work.seq_len)
    implied: FloatColumn = flops / (run.measured * layouts.num_gpus * run.scenario.hw.peak_flops(work.precision))
    return implied


def _memory_fit(frame: pd.DataFrame, groups: Sequence[CaseGroup], software: str, base: Software) -> Fit | None:
    """Parameters of memory, where the table has peaks of enough runs."""
    if PEAK not in frame:
        return None
    peaks = measured_runs(frame, groups, software, PEAK)
    if sum(len(run.measured) for run in peaks) < LEAST_ROWS:
        return None
    return fit(peaks, base, memory_parameters(peaks))


def memory_parameters(peaks: Sequence[Runs]) -> list[FreeParameter]:
    """What peaks can tell: the streams that tensor parallelism keeps, only where there is some."""
    tensor = any((run.layouts.tp > 1).any() for run in peaks)
    names = ["activation_overhead", "context"] + (["head_copies", "embedding_copies"] if tensor else [])
    return parameters_by_name(names)


def profile_text(calibration: Calibration, source: str) -> str:
    """The profile as YAML: every setting that is not the schema's default, each fitted value with its standard error beside it."""
    fitted = dict(calibration.fitted.values) | (calibration.memory.values if calibration.memory else {})
    errors = dict(calibration.fitted.standard_errors) | (calibration.memory.standard_errors if calibration.memory else {})
    kept = calibration.base.model_dump(mode="json", exclude_defaults=True, exclude={"name", "expected_error", "measured_on", *fitted})
    lines = [
        f"# Fitted to {calibration.rows} runs of {calibration.models} models in {source}; standard error beside each value.",
        f"name: {calibration.software}",
        f"expected_error: {calibration.held_out_error:.3g}   # mean, on runs that the fit had not seen",
        f"measured_on: [{', '.join(calibration.chips)}]",
    ]
    lines += [
        f"{key}: {'null' if value is None else str(value).lower() if isinstance(value, bool) else value}" for key, value in kept.items()
    ]
    lines += [f"{name}: {value:.4g}   # ± {errors[name]:.1g}" for name, value in fitted.items() if not name.startswith("hw.")]
    lines += [
        f"# {name}: {value:.4g} ± {errors[name]:.1g} (of the chip: put it into conf/hw)"
        for name, value in fitted.items()
        if name.startswith("hw.")
    ]
    return "\n".join(lines) + "\n"


def write_profile(calibration: Calibration, path: Path, source: str) -> None:
    """Writes the profile aside and moves it into place; the file parses as a profile or nothing is written."""
    import yaml

    text = profile_text(calibration, source)
    Software.model_validate(yaml.safe_load(text))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
