"""The shipped chip that is nearest to one that a foreign file describes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from rapid_dse.config.units import to_si


def nearest_chip(home: Path, peak: float, bandwidth: float) -> dict[str, Any]:
    """The content of the option of ``hw`` whose 16-bit peak (FLOP/s) and memory bandwidth (bytes/s) are nearest, in ratios.

    Of two alike the one that comes first by name; variants of a chip (its name with a suffix, as a100_40gb) are left out.

    Raises:
        ValueError: where one of both is no number above 0.
    """
    if not (0 < peak < math.inf and 0 < bandwidth < math.inf):
        raise ValueError(
            f"tech_param: its core comes to {peak:.3g} FLOP/s and its DRAM to {bandwidth:.3g} bytes/s; expected both above 0 and finite"
        )
    candidates: list[tuple[float, str, dict[str, Any]]] = []
    for path in sorted((home / "conf/hw").glob("*.yaml")):
        if "_" in path.stem:
            continue
        chip = yaml.safe_load(path.read_text(encoding="utf-8"))
        rates = chip["tensor_flop_per_sm_clock"]
        own = rates.get("bf16") or rates["fp16"]
        off = abs(math.log(own * chip["sms"] * to_si(chip["clock"], "Hz") / peak))
        off += abs(math.log(to_si(chip["memory"]["bandwidth"], "bytes/s") / bandwidth))
        candidates.append((round(off, 6), path.stem, chip))
    return min(candidates, key=lambda candidate: candidate[:2])[2]
