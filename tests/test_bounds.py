"""Every number of the schema has bounds, and within them no price overflows, vanishes or fails."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pytest
import serving_trials
from pydantic import BaseModel
from quantiphy import Quantity
from trials import layouts, scenario

from rapid_dse.config.parts import keys_of
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.units import EXAMPLES, UNITS, to_si
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.simulate.results import ABSENT
from rapid_dse.sweep.space import Setting, layouts_of

LAYOUT = {"tp": 2, "pp": 2, "num_gpus": 64, "sequence_parallel": False}  # with it a sequence of one token has no share for each rank
# Keys that have an effect in inference alone; they are priced there.
LOAD = {"hw.num_gpus": 4, "parallel.tp": 4}
OF_WORK = "batch|conc|request|prompt|decode|length|num_p|draft|prefix"
SERVED = re.compile(rf"workload\.({OF_WORK})|software\.(max_|memory_f|.*_latency|decode_w|prefill_e|works|served)")


def numbers(annotation: Any, key: str, metadata: Any = ()) -> Iterator[tuple[str, float | None, float | None]]:
    """Keys below a part of the schema that take numbers, with their least and their largest value; of lists the first item's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in keys_of(annotation).items():
            yield from numbers(field.annotation, f"{key}.{name}".lstrip("."), field.metadata)
    elif annotation in (int, float):
        parts = [part for item in metadata for part in getattr(item, "metadata", [item])]
        lows = [bound for part in parts for name in ("ge", "gt") if (bound := getattr(part, name, None)) is not None]
        highs = [bound for part in parts for name in ("le", "lt") if (bound := getattr(part, name, None)) is not None]
        yield key, max(lows, default=None), min(highs, default=None)
    elif get_origin(annotation) is Annotated:
        yield from numbers(get_args(annotation)[0], key, get_args(annotation)[1:])
    elif get_origin(annotation) is dict and get_args(annotation)[1] is not Any:
        yield from numbers(get_args(annotation)[1], f"{key}.bf16")
    elif get_origin(annotation) is tuple and _is_model(get_args(annotation)[0]):
        yield from numbers(get_args(annotation)[0], f"{key}.0")
    elif get_origin(annotation) not in (None, dict, tuple):
        for part in get_args(annotation):
            yield from numbers(part, key, metadata)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


NUMBERS = list(numbers(Scenario, ""))
# Keys of inference and of adapters, documents of less than a token, and latent attention and models of other kinds, which no dense model
# has.
REFUSED = {f"workload.{name}" for name in ("batch_size", "concurrency", "prompt_len", "decode_len", "lora_rank", "packing")} | {
    *(f"model.{name}" for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")),
    *(f"model.{name}" for name in ("num_prefix_tokens", "num_classes", "input_size", "image_size", "patch_size", "m", "n", "k")),
    *("hw.power_limit", "hw.energy.tdp"),  # between idle power and the chip's own limit; above idle power
}
PRICED = [number for number in NUMBERS if number[0].split(".")[0] in ("hw", "model", "workload", "software")]


def test_every_number_has_bounds() -> None:
    assert len(NUMBERS) > 90
    assert [key for key, low, high in NUMBERS if low is None or high is None] == []


@pytest.mark.parametrize(("key", "low", "high"), PRICED, ids=[key for key, *_ in PRICED])
def test_at_its_bounds_a_number_has_a_finite_price_and_beyond_them_none(key: str, low: float, high: float) -> None:
    for value in (low, high):
        assert_finite({key: value})
    composed = serving_trials.scenario if key.startswith("software.served") else scenario  # of which a trainer has none
    for value in (low - 1 if low <= 0 or isinstance(low, int) else low / 2, high + 1 if isinstance(high, int) else high * 2, 10**400, True):
        with pytest.raises(ValueError, match=re.escape(key)):
            composed(**{key: value})


def test_at_several_bounds_at_once_too() -> None:
    rng = np.random.default_rng(1)
    large = {"model.hidden_size": 2**29, "model.intermediate_size": 2**29, "workload.seq_len": 2**29}  # 64 heads and tp divide these
    priced = 0
    alone = ("hw.num_gpus", "hw.power_limit", "software.measured.", "software.served.")  # what no dense layout here has a price at
    numbers = [number for number in PRICED if number[0] not in REFUSED and not SERVED.match(number[0]) and not number[0].startswith(alone)]
    for _ in range(100):
        chosen = rng.choice(len(numbers), 12, replace=False)
        found = {key: large.get(key, high) if rng.random() < 0.5 else low for key, low, high in (numbers[int(at)] for at in chosen)}
        priced += assert_finite(found)
    assert priced > 20


def assert_finite(changes: dict[str, Any]) -> bool:
    """Whether a layout has a price, which then is finite; else a rule between keys says no in words."""
    try:
        if any(SERVED.match(key) for key in changes):
            of = serving_trials.scenario(**LOAD | changes)
            rows = layouts_of(Setting(of, None, {}, {}), {})[0]
        else:
            of, rows = scenario(**changes), layouts({**LAYOUT, "num_gpus": changes.get("hw.num_gpus", 64)})
        if (broken_rules(rows, of)[0] >= 0).any():
            return False
        with warnings.catch_warnings(), np.errstate(over="raise", divide="raise", invalid="raise"):
            warnings.simplefilter("error")
            found = price(of, rows)
    except ValueError:
        return False
    values = {f.name: float(getattr(found, f.name)[0]) for f in fields(found) if f.name not in ABSENT}
    assert {name: value for name, value in values.items() if not (np.isfinite(value) and value >= 0)} == {}, changes
    assert min(values["step_time_s"], values["tokens_per_s"], values["peak_memory_bytes"]) > 0, changes
    return True


QUANTITIES = {
    "a decimal comma": ("3,35 TB/s", "decimal point"),
    "separators": ("3,350,000,000,000", "decimal point"),
    "a word": ("x", "'x' is not a valid quantity; expected a number with a unit, such as 3.35 TB/s"),
    "truth": (True, "true is not a valid quantity"),
    "300 digits": ("1" * 300 + " TB/s", "not a finite number"),
    "400 digits": (10**400, "not a finite number"),
    "infinity": ("inf", "not a finite number"),
    "no number": (float("nan"), "not a finite number"),
    "another unit": ("3 s", "unit that is not known here"),
    "a list": ([3], "not a valid quantity"),
}


@pytest.mark.parametrize(("text", "part"), QUANTITIES.values(), ids=QUANTITIES.keys())
def test_what_is_no_quantity_is_refused_in_words(text: Any, part: str) -> None:
    with pytest.raises(ValueError, match=re.escape(part)):
        to_si(text, "bytes/s")


def test_quantities_are_read_as_quantiphy_reads_them() -> None:
    numbers = ["1", "0", "3.35", "989.4", "33554432", "0.6", "1.301586432"]
    prefixes = ["", *"kMGTPmunp", "Ki", "Mi", "Gi", "Ti"]
    read = 0
    for kind, scales in UNITS.items():
        for unit in [unit for unit in scales if unit != "flop/s"]:  # its f is femto there
            for text in (f"{number}{space}{prefix}{unit}" for number in numbers for space in ("", " ") for prefix in prefixes):
                expected = Quantity(text, binary=True)
                assert expected.units in scales, text
                assert to_si(text, kind) == float(expected) * scales[expected.units], text
                read += 1
    assert read > 4000
    assert to_si("2 flop/s", "FLOP/s") == 2
    assert to_si("2 kflop/s", "FLOP/s") == 2000


def test_examples_of_quantities_are_quantities() -> None:
    for unit, text in EXAMPLES.items():
        assert to_si(text, unit) > 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hw.clock": 1e-320}, "hw.clock=1e-320: too small; expected at least 1000.0"),
        ({"hw.energy.flop.bf16": 0}, "hw.energy.flop.bf16=0: too small; expected at least 1e-24"),
        ({"hw.network.dimensions.0.utilization": 5e-324}, "hw.network.dimensions.0.utilization=5e-324: too small; expected at least 1e-06"),
        ({"parallel.tp": 2**63}, "parallel.tp=9223372036854775808: too large; expected at most 1,048,576"),
        ({"hw.sms": True}, "hw.sms=true: true is neither a number nor a name; expected one of these"),
        ({"hw.network.faulty_links": [[0, True, 0.5]]}, "hw.network.faulty_links=[[0, True, 0.5]]: true is neither"),
        ({"model.qk_norm": 5}, "model.qk_norm=5: expected true or false"),
        ({"parallel.recompute": "x"}, "parallel.recompute='x': expected one of 'none', 'selective', 'full' or 'auto'"),
        ({"hw.sms": 1.5}, "hw.sms=1.5: expected a whole number, such as 8"),
        ({"software.dp_overlap": "much"}, "software.dp_overlap='much': not a valid number; expected a finite one, such as 0.8"),
    ],
)
def test_a_wrong_value_is_refused_in_words(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}"):
        scenario(**changes)
