"""Training in closed form, on columns."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.simulate.results import Priced


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Compute-bound step time alone: the first light of the pipeline from command to row."""
    n = len(layouts)
    model, work = scenario.model, scenario.workload
    parameters = model.num_hidden_layers * 12.0 * model.hidden_size**2
    tokens = layouts.global_batch_size * float(work.seq_len)
    step = 6 * parameters * tokens / (0.4 * scenario.hw.peak_flops(work.precision) * layouts.num_gpus)
    memory = 16.0 * parameters / (layouts.tp * layouts.pp)
    zero = np.zeros(n)
    columns = {f.name: zero for f in fields(Priced)} | {
        "step_time_s": step,
        "time_compute_s": step,
        "tokens_per_s": tokens / step,
        "tokens_per_s_per_gpu": tokens / step / layouts.num_gpus,
        "mfu": np.full(n, 0.4),
        "fits": memory <= scenario.hw.memory.usable,
        "peak_memory_bytes": memory,
        "memory_parameters_bytes": memory,
        "cost_usd": scenario.hw.price / 3600 * layouts.num_gpus * step,
        "ttft_s": np.full(n, np.nan),
        "tpot_s": np.full(n, np.nan),
        "request_latency_s": np.full(n, np.nan),
    }
    return Priced(**columns)
