"""Pins what every kind of layout costs, so that a change of structure shows that it changed no figure.

``python benchmarks/pin_steps.py --write`` writes the figures of today's code to ``tests/data/pinned_steps.csv``: run it in the commit that
means to change a formula. ``--draw`` draws scenarios and layouts anew first (``pinned_scenarios.json.gz``, ``pinned_layouts.npz``). Without
either it prints the largest differences. The scenarios set every number that a fit of a profile changes, so that fits do not show here.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.events.backends import price
from rapid_dse.events.cache import MODE_VARIABLE
from rapid_dse.parallel.layouts import KEYS, Layouts, broken_rules
from rapid_dse.simulate.results import MEMORY_TERMS, TIME_TERMS, Priced

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

DATA = ROOT / "tests" / "data"
SCENARIOS, LAYOUTS, STEPS = DATA / "pinned_scenarios.json.gz", DATA / "pinned_layouts.npz", DATA / "pinned_steps.csv"
COLUMNS = (
    *("step_time_s", "peak_memory_bytes", "mfu", "energy_j"),
    *(f"time_{term}_s" for term in TIME_TERMS),
    *(f"memory_{term}_bytes" for term in MEMORY_TERMS if term != "kv_cache"),
)
ROWS, A_SCENARIO, SAMPLE = 20_000, 125, 3  # in closed form: in all, at most of a scenario, of those kept one by one
EVENT_ROWS = 36  # of each event-driven backend
CLOSE = 1e-9
CHIPS = ("h100", "a100", "mi300x", "gb200", "v100", "h20", "b200", "l40s")


def entries() -> list[dict[str, Any]]:
    """Chip, model and settings of each scenario."""
    found: list[dict[str, Any]] = json.loads(gzip.decompress(SCENARIOS.read_bytes()))
    return found


def backend_of(entry: dict[str, Any]) -> str:
    """The backend that prices a scenario."""
    return str(entry["changes"].get("backend__name", "analytical"))


def pinned(backend: str | None = None) -> Iterator[tuple[str, Scenario, Layouts]]:
    """Each scenario with its layouts, and what it is called; of one backend, where it is named."""
    from trials import scenario

    with np.load(LAYOUTS) as stored:
        columns = {name: stored[name] for name in stored.files}
    of = columns.pop("scenario")
    for name, names in (("schedule", SCHEDULES), ("recompute", RECOMPUTE)):
        columns[name] = np.array([names.index(each) for each in columns.pop(f"{name}s")])[columns[name]]
    for number, entry in enumerate(entries()):
        if backend not in (None, backend_of(entry)):
            continue
        rows = np.flatnonzero(of == number)
        found = scenario(entry["hw"], entry["model"], **entry["changes"])
        yield f"{number}", found, Layouts.of({key: column[rows] for key, column in columns.items()})


def figures(priced: Priced) -> NDArray[np.float64]:
    """What is pinned of results, ``(n_columns, n_layouts)``."""
    return np.stack([getattr(priced, name) for name in COLUMNS])


def lines(scenario: Scenario, priced: Priced) -> dict[str, NDArray[np.float64]]:
    """What is kept of a scenario's results: every row of an event-driven backend; else some of them, and a weighted mean of all."""
    found = figures(priced)
    count = len(priced)
    if scenario.backend.name != "analytical":
        return {str(row): found[:, row] for row in range(count)}
    weights = np.random.default_rng(count).uniform(0.5, 1.5, count)
    kept = np.unique(np.linspace(0, count - 1, SAMPLE).astype(int))
    return {str(row): found[:, row] for row in kept} | {"mean": found @ weights / weights.sum()}


def computed() -> Iterator[tuple[str, str, NDArray[np.float64]]]:
    """Scenario, row and figures of what is pinned, as the code has them now."""
    for name, scenario, layouts in pinned():
        for row, values in lines(scenario, price(scenario, layouts)).items():
            yield name, row, values


@cache
def stored() -> dict[tuple[str, str], NDArray[np.float64]]:
    """The pinned figures."""
    with STEPS.open() as file:
        return {(row["scenario"], row["row"]): np.array([float(row[name]) for name in COLUMNS]) for row in csv.DictReader(file)}


def differences(values: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative differences, ``(n_columns,)``; of a time against the step, of a term of memory against the peak."""
    scale = np.abs(expected)
    for at, name in enumerate(COLUMNS):
        if name.startswith("time_"):
            scale[at] = expected[0]
        elif name.startswith("memory_"):
            scale[at] = expected[1]
    return np.abs(values - expected) / scale


def write() -> None:
    """Writes the figures of today's code."""
    with STEPS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["scenario", "row", *COLUMNS])
        for name, row, values in computed():
            table.writerow([name, row, *(f"{value:.12g}" for value in values)])


def draw() -> None:
    """Draws scenarios, and legal layouts of them."""
    from drawn_rows import _layouts, _small
    from trials import scenario

    rng, drawn, parts, count = np.random.default_rng(13), [], [], 0
    while count < ROWS:
        chip = CHIPS[len(drawn) % len(CHIPS)]
        named = ("gpt3_175b", "llama2_13b", "llama3_1_405b", "llama3_1_8b", "mixtral_8x7b", "qwen3_30b_a3b")
        model, changes = ("llama3_1_8b", _small(rng)) if rng.random() < 0.6 else (str(rng.choice(named)), {})
        changes = changes | _job(rng, chip) | _software(rng) | _split(rng, changes)
        try:
            found = scenario(chip, model, **changes)
        except ValueError:  # no such precision on this chip
            continue
        layouts = _layouts(found, rng)
        legal = layouts.take(broken_rules(layouts, found)[0] < 0).take(slice(0, A_SCENARIO))
        if len(legal):
            drawn.append({"hw": chip, "model": model, "changes": changes})
            parts.append(legal)
            count += len(legal)
    for backend in ("hybrid", "full_astrasim_hierarchical", "full_astrasim_flattened"):
        for entry, layouts in _event_driven(rng, backend):
            drawn.append(entry)
            parts.append(layouts)
    every = Layouts.concatenate(parts)
    columns = {name: getattr(every, name).astype(np.int32) for name in KEYS}
    of = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int32)
    np.savez_compressed(LAYOUTS, scenario=of, schedules=np.array(SCHEDULES), recomputes=np.array(RECOMPUTE), **columns)
    SCENARIOS.write_bytes(gzip.compress(json.dumps(drawn).encode(), mtime=0))


def _event_driven(rng: np.random.Generator, backend: str) -> Iterator[tuple[dict[str, Any], Layouts]]:
    """Single layouts of few GPUs that the backend takes, each under a scenario of its own."""
    from drawn_rows import _layouts, _small
    from trials import scenario

    count = 0
    while count < EVENT_ROWS:
        chip = CHIPS[count % 4]
        small = _small(rng) | {"model__num_hidden_layers": int(rng.integers(2, 9)), "backend__name": backend}
        small["backend__network"] = str(rng.choice(["ideal", "congestion_aware", "congestion_unaware"]))
        changes = small | _job(rng, chip) | _software(rng) | _split(rng, small)
        try:
            found = scenario(chip, "llama3_1_8b", **changes)
        except ValueError:
            continue
        layouts = _layouts(found, rng)
        few = (layouts.num_gpus <= 32) & (layouts.num_micro_batches * layouts.num_gpus <= 256)
        spread = (layouts.tp > 1) | (layouts.pp > 1) | (layouts.cp > 1)
        for row in np.flatnonzero((broken_rules(layouts, found)[0] < 0) & few & spread)[:4].tolist():
            try:
                price(found, layouts.take(slice(row, row + 1)))
            except ValueError:  # the backend does not take it
                continue
            count += 1
            yield {"hw": chip, "model": "llama3_1_8b", "changes": changes}, layouts.take(slice(row, row + 1))
            break


def _job(rng: np.random.Generator, chip: str) -> dict[str, Any]:
    precisions = ("fp16", "fp32") if chip == "v100" else ("bf16", "fp8", "fp16", "tf32")
    return {
        "workload__precision": str(rng.choice(precisions)),
        "workload__seq_len": int(rng.choice([1024, 4096, 8192, 30720])),
        "hw__operator_model": str(rng.choice(["roofline", "tiled"], p=[0.7, 0.3])),
    }


def _split(rng: np.random.Generator, changes: dict[str, Any]) -> dict[str, Any]:
    layers = changes.get("model__num_hidden_layers", 0)
    if not layers or rng.random() > 0.3:
        return {}
    cuts = np.sort(rng.integers(0, layers + 1, int(rng.choice([1, 2, 3, 4, 8])) - 1))
    return {"parallel__stage_layers": np.diff([0, *cuts, layers]).tolist()}


def _software(rng: np.random.Generator) -> dict[str, Any]:
    """A framework of any kind, each of whose settings is drawn, and whether what it trains has dropout."""

    def share() -> float:
        return float(rng.choice([0.0, 0.3, 0.8, 1.0]))

    def one_of(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    overlaps = ("dp", "parameter_gather", "tp", "tp_backward", "cp", "pp")
    drawn: dict[str, Any] = {f"{name}_overlap": share() for name in overlaps}
    switches = ("fused_rotary", "fused_activation", "dropout", "cp_balanced", "recomputes_attention", "recompute_stops_early")
    drawn |= {name: bool(rng.integers(2)) for name in (*switches, "fused_accumulation", "async_tp", "master_shards")}
    drawn |= {
        "attention": one_of("flash", "flash", "unfused"),
        "loss": one_of("whole", "fused", "chunked"),
        "selective_recompute": one_of("core_attention", "core_attention", "every_other_matmul"),
        "elementwise_traffic": one_of(1.0, 2.5),
        "matmul_efficiency": one_of(0.85, 1.0),
        "fp8_recipe": one_of("delayed", "tensorwise", "rowwise", "tensorwise + fp8 all-gather"),
        "fp8_library": one_of("transformer_engine", "torchao"),
        "fp8_parameters": bool(rng.integers(2)),
        "fp8_cast_passes": one_of(0.0, 1.5),
        "overlap_slowdown": one_of(0.0, 0.2),
        "host_layer": one_of(0.0, 1e-3, 4e-3),
        "host_collective_layer": one_of(0.0, 5e-4),
        "host_micro_batch": one_of(0.0, 2e-3),
        "launch_norm": one_of(None, 3.0),
        "host_step": 1e-2,
        "gradient_bucket": one_of(25e6, 160e6),
        "gradient_bucket_per_rank": one_of(0.0, 4e6),
        "scatter_overlap": one_of(None, 0.5),
        "gather_calls_per_layer": one_of(0.0, 6.0),
        "reduce_each_micro_batch": one_of(True, False, "without_pipelines"),
        "send_receive": one_of(2e-5, 1e-3),
        "gradient_dtype": one_of("fp32", "bf16"),
        "reduce_dtype": one_of(None, "bf16"),
        "extra_gradient_bytes": one_of(0.0, 2.0),
        "optimizer_bytes": one_of(12.0, 8.0),
        "optimizer_traffic": 34.0,
        "pipeline_split": one_of("megatron", "balanced", "even"),
        "context": 5e8,
        "fragmentation": one_of(1.0, 1.1),
        "activation_overhead": one_of(1.0, 1.2),
        "logit_bytes": one_of(None, 12.0),
        "layers_ahead": one_of(0.0, 20.0),
        "working_copies": one_of(0.0, 2.0),
    }
    return {"model__dropout": drawn.pop("dropout")} | {f"software__{name}": value for name, value in drawn.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the figures of today's code")
    parser.add_argument("--draw", action="store_true", help="draw scenarios and layouts anew, and write")
    arguments = parser.parse_args()
    os.environ.setdefault(MODE_VARIABLE, "NO_CACHE")
    if arguments.draw:
        draw()
    if arguments.draw or arguments.write:
        write()
        return
    expected = stored()
    worst = sorted(
        ((float(difference.max()), f"scenario {name} row {row}: {COLUMNS[int(difference.argmax())]}")
         for name, row, values in computed() for difference in [differences(values, expected[name, row])]),
        reverse=True,
    )  # fmt: skip
    for difference, what in worst[:20]:
        print(f"{difference:.3g} {what}")


if __name__ == "__main__":
    main()
