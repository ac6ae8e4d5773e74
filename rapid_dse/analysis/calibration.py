"""Fitting a software profile to a table of measured runs, and writing it as a YAML that composes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from rapid_dse.analysis.envelope import boxes, measured_lines
from rapid_dse.analysis.fit import CHIP, Fit, Runs, fit, held_out, typical_cluster
from rapid_dse.analysis.measured_runs import (
    LEAST_ROWS,
    PEAK,
    exhausted_runs,
    measured_runs,
    parameters_by_name,
    require_plausible,
    require_runs,
)
from rapid_dse.analysis.profile_file import profile_lines
from rapid_dse.config.cluster import FREE_CLUSTER, Cluster
from rapid_dse.config.free_parameters import FreeParameter
from rapid_dse.config.measured_boxes import MeasuredRuns
from rapid_dse.config.software import FREE, Software
from rapid_dse.model.architecture import model_flops_per_token
from rapid_dse.simulate.communication import nodes_of
from rapid_dse.simulate.results import FloatColumn
from rapid_dse.sweep.cases import CaseGroup

if TYPE_CHECKING:
    import pandas as pd


REFERENCE = "reference"  # the cluster of runs whose own is not known
What = Literal["software", "cluster", "both"]


@dataclass(frozen=True)
class Options:
    """``names`` of the parameters to fit (None: all that the runs exercise), ``what`` of them: the framework's, the cluster's, or both;
    ``chip``: its efficiencies too, ``jobs``: processes for the folds that test the fit, ``least``: rows without which nothing is fitted;
    ``unknown_clusters``: see ``cluster_parameters``."""

    names: Sequence[str] | None = None
    what: What = "both"
    chip: bool = False
    jobs: int = 1
    least: int = LEAST_ROWS
    unknown_clusters: bool = True


@dataclass(frozen=True)
class Calibration:
    """A fitted profile, and the clusters fitted with it: the fit, its mean error on runs that it had not seen, how many runs and models
    there were, where they lie and how far off they were there, and the clusters of the runs as they were before the fit, by name."""

    software: str
    base: Software
    fitted: Fit
    held_out_error: float
    rows: int
    models: int
    measured: tuple[MeasuredRuns, ...]
    clusters: Mapping[str, Cluster]
    memory: Fit | None


def exercised(runs: Sequence[Runs]) -> list[str]:
    """Names of the framework's free parameters that these runs can say something of: no pipeline, no pp parameter, and so on."""
    some = {name: any(_has(run, name) for run in runs) for name in ("tp", "cp", "pp", "dp", "zero0", "zero1", "zero12", "zero23", "nodes")}
    fp8 = any(run.scenario.workload.precision == "fp8" for run in runs)
    asynchronous = any((run.pinned.get("async_tp", run.scenario.software.overlap.async_tp)) for run in runs)
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
        "overlap_slowdown": some["tp"] or some["cp"] or some["zero23"],
        "pp_overlap": some["pp"],
        "send_receive": some["pp"],
    }
    known = {name for run in runs for name in run.scenario.software.known}
    return [parameter.name for parameter in FREE if needs.get(parameter.name, True) and parameter.name not in known]


def cluster_parameters(runs: Sequence[Runs], unknown: bool = True) -> list[FreeParameter]:
    """The free parameters of each cluster that these runs can say something of: of its fabric where jobs span nodes.

    ``unknown``: whether those count too whose cluster no one named. Where a table mixes such runs it is no cluster's: those keep the
    reference's.

    What launches and all-reduces wait for is fitted where NCCL is left its rings alone: elsewhere runs cannot tell it from latency.
    """
    parameters = []
    for name, cluster in sorted({run.scenario.cluster.name: run.scenario.cluster for run in runs}.items()):
        if name == REFERENCE and not unknown:
            continue
        mine = [run for run in runs if run.scenario.cluster.name == name]
        some = {kind: any(_has(run, kind) for run in mine) for kind in ("nodes", "tp_nodes", "zero0_nodes")}
        measured = cluster.allreduce_busbw is not None
        needs = {
            "fabric_efficiency": some["nodes"] and not measured,
            "hop_latency": some["nodes"] and not measured,
            "node_skew": some["tp_nodes"],
            "all_reduce_wait": some["zero0_nodes"] and not cluster.trees,
            "host_slowdown": some["tp_nodes"] and not cluster.trees,
        }
        for parameter in FREE_CLUSTER:
            field = parameter.name.removeprefix("cluster.")
            if needs[field]:
                parameters.append(replace(parameter, name=f"cluster.{name}.{field}"))
    return parameters


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
        "zero23": (column["dp"] > 1) & (column["zero"] >= 2),
        "nodes": several_nodes,
        "tp_nodes": several_nodes & (column["tp"] > 1),
        "zero0_nodes": several_nodes & (column["dp"] > 1) & (column["zero"] == 0),
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
    runs = measured_runs(frame, groups, software)
    if not runs:
        raise ValueError(f"{source}: no legal training run has software={software}")
    require_plausible([implied_mfu(run) for run in runs], source)
    clusters = {run.scenario.cluster.name: run.scenario.cluster for run in runs}
    if options.what != "software":
        runs = on_typical_clusters(runs, options.unknown_clusters)
    parameters = _wanted(runs, options)
    if not parameters:
        raise ValueError(f"{source}: its runs say nothing of a cluster, since none spans two nodes; expected --fit software")
    first = fit(runs, base, parameters)
    parameters = [parameter for parameter in parameters if parameter.name not in first.silent] or parameters
    fitted = fit(runs, base, parameters) if first.silent else first
    fitted = replace(fitted, silent=first.silent)
    unseen = [seconds / run.measured - 1 for run, seconds in zip(runs, held_out(runs, base, parameters, options.jobs), strict=True)]
    models = len({run.model for run in runs})
    error = float(np.abs(np.concatenate(unseen)).mean())
    memory = _memory_fit(frame, groups, software, base) if options.what != "cluster" else None
    return Calibration(software, base, fitted, error, sum(map(len, unseen)), models, boxes(runs, unseen), clusters, memory)


def on_typical_clusters(runs: Sequence[Runs], unknown: bool) -> list[Runs]:
    """The runs with their clusters' free parameters at what is typical: a fit must not start from another fit."""
    keep = set() if unknown else {REFERENCE}
    return [run if run.scenario.cluster.name in keep else run.on(typical_cluster(run.scenario.cluster)) for run in runs]


def _wanted(runs: Sequence[Runs], options: Options) -> list[FreeParameter]:
    """The parameters to fit."""
    of_clusters = cluster_parameters(runs, options.unknown_clusters)
    if options.names is not None:
        return parameters_by_name(options.names, (*CHIP, *of_clusters))
    framework = [] if options.what == "cluster" else parameters_by_name(exercised(runs))
    return framework + ([] if options.what == "software" else of_clusters) + (list(CHIP) if options.chip else [])


def implied_mfu(run: Runs) -> NDArray[np.float64]:
    """Model FLOP utilisation that the measured step times of one group imply, ``(n_layouts,)``."""
    work, layouts = run.scenario.workload, run.layouts
    flops = model_flops_per_token(run.scenario.model, work) * layouts.global_batch_size * float(work.seq_len)
    implied: FloatColumn = flops / (run.measured * layouts.num_gpus * run.scenario.hw.peak_flops(work.precision))
    return implied


def _memory_fit(frame: pd.DataFrame, groups: Sequence[CaseGroup], software: str, base: Software) -> Fit | None:
    """Parameters of memory, where the table has peaks of enough runs."""
    if PEAK not in frame:
        return None
    peaks = measured_runs(frame, groups, software, PEAK)
    if sum(len(run.measured) for run in peaks) < LEAST_ROWS:
        return None
    return fit([*peaks, *exhausted_runs(frame, groups, software)], base, memory_parameters(peaks))


def memory_parameters(peaks: Sequence[Runs]) -> list[FreeParameter]:
    """What peaks can tell: the streams that tensor parallelism keeps, only where there is some."""
    tensor = any((run.layouts.tp > 1).any() for run in peaks)
    names = ["activation_overhead", "context"] + (["layers_ahead", "working_copies"] if tensor else [])
    return parameters_by_name(names)


def profile_text(calibration: Calibration, source: str) -> str:
    """The profile as YAML: every setting that is not the schema's default, each fitted value with its standard error beside it."""
    fitted = dict(calibration.fitted.values) | (calibration.memory.values if calibration.memory else {})
    errors = dict(calibration.fitted.standard_errors) | (calibration.memory.standard_errors if calibration.memory else {})
    own = {name: value for name, value in fitted.items() if not name.startswith(("hw.", "cluster."))}
    dumped = calibration.base.model_dump(mode="json", exclude_defaults=True)
    kept = {name: value for name, value in dumped.items() if name not in ("name", "measured", "served", *fitted)}
    lines = [
        f"# Fitted to {calibration.rows} runs of {calibration.models} models in {source}; standard error beside each value.",
        f"# Mean error on runs of models that the fit had not seen: {calibration.held_out_error:.3g}.",
    ]
    values = {"name": calibration.software} | kept | {name: f"{value:.4g}" for name, value in own.items()}
    lines += profile_lines(values, {name: f"± {errors[name]:.1g}" for name in own})
    lines += [
        f"# {name}: {value:.4g} ± {errors[name]:.1g} (of the chip: put it into conf/hw)"
        for name, value in fitted.items()
        if name.startswith("hw.")
    ]
    lines += measured_lines(calibration.measured)
    return "\n".join(lines) + "\n"


def cluster_text(calibration: Calibration, cluster: Cluster, name: str, source: str) -> str:
    """A fitted cluster as YAML: each fitted value with its standard error, and what it had before that is not the schema's default."""
    mine = f"cluster.{cluster.name}."
    values = {key.removeprefix(mine): value for key, value in calibration.fitted.values.items() if key.startswith(mine)}
    errors = {key.removeprefix(mine): value for key, value in calibration.fitted.standard_errors.items() if key.startswith(mine)}
    kept = typical_cluster(cluster).model_dump(mode="json", exclude_defaults=True, exclude={"name", *values})
    lines = [f"# Fitted to runs in {source}, with software={calibration.software}; standard error beside each value.", f"name: {name}"]
    lines += [f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in kept.items()]
    lines += [f"{key}: {value:.4g}   # ± {errors[key]:.1g}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def write(text: str, schema: type[BaseModel], path: Path) -> None:
    """Writes an option aside and moves it into place; it is one of the schema's or nothing is written."""
    import yaml

    schema.model_validate(yaml.safe_load(text))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_all(calibration: Calibration, folder: Path, name: str, source: str) -> dict[str, Path]:
    """Writes what was fitted below ``folder``: the profile as ``software/NAME.yaml``, each cluster as ``cluster/NAME.yaml``, or
    ``NAME_CLUSTER.yaml`` where there are several. Returns the files by the override that takes them."""
    fitted, written = calibration.fitted.values, {}
    mine = [
        cluster for _, cluster in sorted(calibration.clusters.items()) if any(key.startswith(f"cluster.{cluster.name}.") for key in fitted)
    ]
    names = {cluster.name: name if len(mine) == 1 else f"{name}_{cluster.name}" for cluster in mine}
    if any(not key.startswith(("hw.", "cluster.")) for key in fitted):
        written[f"software={name}"] = path = folder / "software" / f"{name}.yaml"
        write(profile_text(_with_clusters_named(names, calibration), source), Software, path)
    for cluster in mine:
        own = names[cluster.name]
        written[f"cluster={own}"] = path = folder / "cluster" / f"{own}.yaml"
        write(cluster_text(calibration, cluster, own, source), Cluster, path)
    return written


def taken_by(written: Sequence[str]) -> str:
    """The overrides that take what was written, in words: a trial has one of several clusters."""
    clusters = [override for override in written if override.startswith("cluster=")]
    return " ".join([*(override for override in written if override not in clusters), *([" or ".join(clusters)] if clusters else [])])


def without_cluster(calibration: Calibration) -> str:
    """Why no cluster was fitted, in words."""
    if any(name.startswith("cluster.") for name in calibration.fitted.silent):
        return "these runs say too little of their cluster"
    if any(cluster.allreduce_busbw is not None for cluster in calibration.clusters.values()):
        return "these runs say nothing of their cluster beyond its bus bandwidths"
    return "these runs say nothing of their cluster, since none spans two nodes"


def _with_clusters_named(names: Mapping[str, str], calibration: Calibration) -> Calibration:
    """The same, its runs on clusters as they are called once they are written: so rows under these lie where the runs do."""
    renamed_boxes = tuple(box.model_copy(update={"cluster": names.get(box.cluster, box.cluster)}) for box in calibration.measured)
    return replace(calibration, measured=renamed_boxes)
