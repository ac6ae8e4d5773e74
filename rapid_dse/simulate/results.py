"""What a priced table of layouts is: columns beside the layouts' own, each of shape ``(n_layouts,)``, SI units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

FloatColumn = NDArray[np.float64]

TIME_TERMS = ("compute", "tp", "cp", "ep", "pp", "dp", "bubble", "optimizer", "host")
MEMORY_TERMS = ("parameters", "gradients", "optimizer", "activations", "kv_cache", "gathered", "buffers", "framework")


@dataclass(frozen=True)
class Priced:
    """Result columns of trials that could be priced; the order here is the order in tables.

    ``time_<term>_s`` add up to ``step_time_s``, ``memory_<term>_bytes`` to ``peak_memory_bytes``. ``fits`` is peak against
    hw.memory.usable. ``ttft_s``, ``tpot_s`` and ``request_latency_s`` are NaN for training.
    """

    step_time_s: FloatColumn
    tokens_per_s: FloatColumn
    tokens_per_s_per_gpu: FloatColumn
    mfu: FloatColumn
    fits: NDArray[np.bool_]
    peak_memory_bytes: FloatColumn
    memory_parameters_bytes: FloatColumn
    memory_gradients_bytes: FloatColumn
    memory_optimizer_bytes: FloatColumn
    memory_activations_bytes: FloatColumn
    memory_kv_cache_bytes: FloatColumn
    memory_gathered_bytes: FloatColumn
    memory_buffers_bytes: FloatColumn
    memory_framework_bytes: FloatColumn
    time_compute_s: FloatColumn
    time_tp_s: FloatColumn
    time_cp_s: FloatColumn
    time_ep_s: FloatColumn
    time_pp_s: FloatColumn
    time_dp_s: FloatColumn
    time_bubble_s: FloatColumn
    time_optimizer_s: FloatColumn
    time_host_s: FloatColumn
    energy_j: FloatColumn
    cost_usd: FloatColumn
    ttft_s: FloatColumn
    tpot_s: FloatColumn
    request_latency_s: FloatColumn

    def __len__(self) -> int:
        return len(self.step_time_s)

    def take(self, rows: NDArray[np.intp]) -> Priced:
        """The rows at these positions, in their order."""
        return Priced(*(getattr(self, f.name)[rows] for f in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[Priced]) -> Priced:
        """All rows of ``parts``, in order."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))
