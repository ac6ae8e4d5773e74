"""What practice launches stands near the best of the sweeps that ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_acceptance import done, rows

# arXiv 2412.19437, section 3.2: pp 16 by DualPipe, ep 64. Megatron Bridge, qwen3_235b_a22b on 256 H100: tp 2, pp 8, vpp 4, ep 32.
PRACTICE = {
    "deepseek_v3_2048xh800": {"tp": 1, "pp": 16, "ep": 64, "schedule": "dualpipe_v", "micro_batch_size": 1},
    "qwen3_235b_256xh100": {"tp": 2, "pp": 8, "ep": 32, "vpp": 4, "cp": 1, "etp": 1, "recompute": "none", "micro_batch_size": 1},
}
ONE = ("search.jobs=1", "search.top=1")
ONLY = {"qwen3_235b_256xh100": ("parallel.tp=1,2,4", "parallel.etp=1", "parallel.recompute=none,full", "parallel.vpp=2,3,4,6,8")}


@pytest.mark.parametrize("name", PRACTICE)
def test_practice_is_within_5_percent_of_the_best(tmp_path: Path, name: str) -> None:
    done(tmp_path, "-m", f"+sweeps={name}", *ONE, *ONLY.get(name, ()))
    table = rows(tmp_path)
    fits = table[table["fits"] & (table["peak_memory_bytes"] <= 0.95 * 78.4 * 2**30)]
    chosen = fits
    for key, value in PRACTICE[name].items():
        chosen = chosen[chosen[f"parallel.{key}"].eq(value)]
    assert len(chosen) == 1
    assert float(chosen["step_time_s"].iloc[0]) < 1.05 * float(fits["step_time_s"].min())
