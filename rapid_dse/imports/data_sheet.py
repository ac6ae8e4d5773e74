"""A chip's file that says what a data sheet does: what it lacks comes from a chip of its generation.

Its keys are those of an option of ``hw``; in the place of ``tensor_flop_per_sm_clock`` it may have ``peak_flops``, dense peaks by
precision as data sheets have them. ``architecture`` is the generation. Of what it does not say,

  * tensor rates, cores an SM, kernels, latencies, joules, links and price are the other chip's;
  * a precision without a peak of its own has the other chip's ratio to 16 bits; without SMs there are as many as the peak needs at the
    clock;
  * on-chip memories have the other chip's bytes an SM and a clock, and what is usable of HBM its share;
  * the clock that products hold follows from the power limit, for so many SMs at such a clock (``device.tiled``'s power law).

``hw.like`` then names the other chip: rows say so in ``outside``, and their error to expect is that of another generation's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rapid_dse.config.hardware import Hardware
from rapid_dse.config.units import to_si

# Of each generation the chip that was measured most; of those that were not, the first one.
OF_GENERATION = {
    "volta": "v100", "ampere": "a100", "ada": "l40s", "hopper": "h100", "blackwell": "b200", "cdna3": "mi300x", "cdna4": "mi355x",
}  # fmt: skip
PEAKS = "peak_flops"
SIXTEEN_BITS = ("bf16", "fp16")
POWER_LAW = 0.5  # the exponent of device.tiled.sustained_clock, which stands below this module
SCALED = ("registers", "shared_memory")  # with as many SMs
_UNKNOWN = (
    "says nothing of {lacking} and not of which generation it is, from which that could be taken; allowed: architecture: {names}; or \
defaults: [h100, _self_], which starts from another chip"
)


def lacking(hw: Mapping[str, Any]) -> list[str]:
    """What an option of ``hw`` needs and the mapping does not say."""
    return [name for name, field in Hardware.model_fields.items() if field.is_required() and name not in hw and name != "gpus_per_node"]


def completed(hw: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """The option with what it lacks; itself where it lacks nothing.

    Args:
        home: the folder that holds ``conf/``.

    Raises:
        ValueError: one line: something is lacking and no generation is named, or a peak that is none.
    """
    missing = [name for name in lacking(hw) if name != "tensor_flop_per_sm_clock" or PEAKS not in hw]
    partly = [name for name in ("memory", "energy", "l2") if isinstance(hw.get(name), Mapping) and _is_part(name, hw[name])]
    if not missing and not partly and PEAKS not in hw:
        return dict(hw)
    base_name = OF_GENERATION.get(str(hw.get("architecture")))
    if base_name is None:
        named = f"hw={hw.get('name', '?')}"
        raise ValueError(f"{named}: {_UNKNOWN.format(lacking=', '.join([*missing, *partly][:4]) or PEAKS, names=', '.join(OF_GENERATION))}")
    base: dict[str, Any] = yaml.safe_load((home / "conf/hw" / f"{base_name}.yaml").read_text(encoding="utf-8"))
    given = {key: value for key, value in hw.items() if key != PEAKS}
    clock = to_si(given.get("clock", base["clock"]), "Hz")
    rates, sms = _rates(hw, base, clock)
    scale = {"sms": sms / base["sms"], "clock": clock / to_si(base["clock"], "Hz")}
    chip: dict[str, Any] = _merged(base, given) | {"clock": clock, "sms": sms, "tensor_flop_per_sm_clock": rates, "like": base_name}
    for name in SCALED:
        if name not in given:
            chip[name] = _scaled(base[name], scale["sms"], scale["sms"] * scale["clock"])
    if "l2" not in given:
        chip["l2"] = _scaled(base["l2"], 1.0, scale["clock"])
    if "usable" not in hw.get("memory", {}):
        share = to_si(base["memory"]["usable"], "bytes") / to_si(base["memory"]["capacity"], "bytes")
        chip["memory"] = {**chip["memory"], "usable": share * to_si(chip["memory"]["capacity"], "bytes")}
    if "clock" not in hw.get("efficiency", {}):
        chip["efficiency"] = {**chip["efficiency"], "clock": _dynamic_power_share(chip, base, scale)}
    return chip


def _is_part(name: str, value: Mapping[str, Any]) -> bool:
    """Whether a part of the option lacks something that it needs."""
    part = Hardware.model_fields[name].annotation
    return any(field.is_required() and key not in value for key, field in getattr(part, "model_fields", {}).items())


def _rates(hw: Mapping[str, Any], base: Mapping[str, Any], clock: float) -> tuple[dict[str, float], int]:
    """FLOP an SM and clock by precision, and SMs: as the peaks say, or the other chip's."""
    own = dict(base["tensor_flop_per_sm_clock"])
    wide = next(name for name in SIXTEEN_BITS if name in own)
    peaks = hw.get(PEAKS)
    if peaks is None:
        return dict(hw.get("tensor_flop_per_sm_clock", own)), int(hw.get("sms", base["sms"]))
    if not isinstance(peaks, Mapping) or not set(peaks) <= set(own) or not set(peaks) & set(SIXTEEN_BITS):
        raise ValueError(f"hw.{PEAKS}={peaks}: expected dense peaks by precision, bf16 or fp16 among them; allowed: {', '.join(own)}")
    flops = {name: to_si(value, "FLOP/s") for name, value in peaks.items()}
    peak = next(flops[name] for name in SIXTEEN_BITS if name in flops)
    sms = int(hw.get("sms", max(1, round(peak / (own[wide] * clock)))))
    scaled = {name: rate * peak / (own[wide] * sms * clock) for name, rate in own.items() if name != "fp32"}
    return {"fp32": own["fp32"], **scaled, **{name: value / (sms * clock) for name, value in flops.items()}}, sms


def _dynamic_power_share(given: Mapping[str, Any], base: Mapping[str, Any], scale: Mapping[str, float]) -> float:
    """Share of the clock that products hold: the power that the limit leaves beside idle power, for each SM, clock and FLOP of them."""
    idle, tdp = (to_si(given["energy"][name], "W") for name in ("idle", "tdp"))
    watts = (tdp - idle) / (to_si(base["energy"]["tdp"], "W") - to_si(base["energy"]["idle"], "W"))
    wide = next(name for name in SIXTEEN_BITS if name in base["tensor_flop_per_sm_clock"])
    asked = scale["sms"] * scale["clock"] * given["tensor_flop_per_sm_clock"][wide] / base["tensor_flop_per_sm_clock"][wide]
    return float(min(1.0, base["efficiency"]["clock"] * max(watts / asked, 1e-3) ** POWER_LAW))


def _scaled(level: Mapping[str, Any], size: float, bandwidth: float) -> dict[str, float]:
    """A memory of the chip with so many times the bytes and the bandwidth."""
    return {"size": size * to_si(level["size"], "bytes"), "bandwidth": bandwidth * to_si(level["bandwidth"], "bytes/s")}


def _merged(base: Any, given: Any) -> Any:
    """What is given, over the other chip's: mappings key by key, lists of mappings item by item."""
    if isinstance(base, Mapping) and isinstance(given, Mapping):
        return {**base, **{key: _merged(base.get(key), value) for key, value in given.items()}}
    if isinstance(base, list) and isinstance(given, list) and len(base) == len(given):
        return [_merged(one, other) for one, other in zip(base, given, strict=True)]
    return given
