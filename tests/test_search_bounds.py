"""The law that pruning rests on: no backend's step comes below the lower bound."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from generated import ROOT, portion, profile, scenario

from rapid_dse.config import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.events.backends import price
from rapid_dse.parallel.enumeration import Space, enumerate_layouts
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.bounds import lower_bound

CHIPS = {"h100": ("bf16", "fp16", "fp8"), "a100": ("bf16",), "a100_pcie": ("bf16",), "b200": ("bf16", "fp8"), "gb200": ("fp8",),
         "mi300x": ("bf16", "fp8"), "v100": ("fp16",)}  # fmt: skip
SOFTWARE = sorted(path.stem for path in (ROOT / "conf" / "software").glob("*.yaml"))
MORE = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 1  # layouts of make fuzz for each of make test
DEGREES = ("tp", "cp", "pp", "ep", "vpp", "zero", "sequence_parallel", "micro_batch_size", "recompute", "schedule")


def drawn(backend: str, count: int, gpus: tuple[int, ...], layers: tuple[int, ...]) -> Iterator[tuple[Scenario, Layouts]]:
    """``count`` layouts, some at a time, under chips, models, profiles and precisions drawn with them."""
    rng, left = np.random.default_rng(len(backend)), count
    while left > 0:
        hw = str(rng.choice(list(CHIPS)))
        num_gpus, batch = int(rng.choice(gpus)), int(rng.choice([8, 32]))
        depth = int(rng.choice(layers))
        cuts = np.sort(rng.integers(1, depth, int(rng.choice([1, 2, 4])) - 1))
        own = np.diff([0, *cuts, depth]).tolist() if rng.random() < 0.25 else None
        found = scenario(
            hw,
            str(rng.choice(["llama3_1_8b", "llama2_13b", "gpt3_175b", "mixtral_8x7b"])),
            software=profile(str(rng.choice(SOFTWARE))),
            backend__name=backend,
            model__num_hidden_layers=depth,
            parallel__stage_layers=own,
            hw__operator_model=str(rng.choice(["roofline", "tiled"])),
            workload__precision=str(rng.choice(CHIPS[hw])),
            workload__seq_len=int(rng.choice([2048, 8192])),
        )
        every = Space({"num_gpus": [num_gpus], "global_batch_size": [batch], **dict.fromkeys(DEGREES)})
        layouts, _ = enumerate_layouts(every, found)
        if backend == "full_astrasim_hierarchical":  # it needs a network dimension of just tp and cp
            block, first = layouts.tp * layouts.cp, found.hw.network.dimensions[0].size or 0
            layouts = layouts.take((block == 1) | (block == min(first, num_gpus)))
        taken = layouts.take(rng.choice(len(layouts), min(left, 8, len(layouts)), replace=False))
        left -= len(taken)
        if len(taken):
            yield found, taken


def test_the_spread_is_wide() -> None:
    every = [layouts for _, layouts in drawn("hybrid", 300, (1, 4, 16, 64), (8, 30))]
    for name, at_least in (
        ("tp", 4),
        ("cp", 4),
        ("pp", 4),
        ("ep", 4),
        ("vpp", 4),
        ("zero", 4),
        ("recompute", 3),
        ("schedule", len(SCHEDULES)),
    ):
        assert len(np.unique(np.concatenate([getattr(layouts, name) for layouts in every]))) >= at_least, name


@pytest.mark.parametrize(
    ("backend", "count", "gpus", "layers"),
    [
        ("analytical", 500, (1, 4, 16, 512), (8, 30, 80)),
        ("hybrid", 150, (1, 4, 16, 64), (8, 30)),
        ("full_astrasim_hierarchical", 80, (1, 8), (8, 30)),
        ("full_astrasim_flattened", 50, (1, 8), (4, 9)),
    ],
)
def test_no_step_comes_below_the_lower_bound(backend: str, count: int, gpus: tuple[int, ...], layers: tuple[int, ...]) -> None:
    for found, layouts in drawn(backend, count * MORE, gpus, layers):
        bounds = lower_bound(found, layouts)
        seconds = price(found, layouts).step_time_s
        assert (bounds > 0).all()
        assert (bounds <= seconds).all(), (found.software.name, layouts.take(bounds > seconds))


def test_the_bound_is_near_the_step_time_of_what_could_win() -> None:
    found = scenario(model="llama3_1_70b")
    every = Space({"num_gpus": [512], "global_batch_size": [1024], **dict.fromkeys(DEGREES)})
    layouts, _ = enumerate_layouts(every, found)
    priced = price(found, layouts)
    best = np.argsort(np.where(priced.fits, priced.step_time_s, np.inf))[:1000]
    share = lower_bound(found, layouts.take(best)) / priced.step_time_s[best]
    assert np.median(share) > 0.8
    assert share.max() <= 1


def test_a_network_without_closed_forms_has_a_bound_too() -> None:
    faulty = scenario(hw__network__faulty_links=[[0, 64, 0.5]], backend__name="hybrid")
    layouts = portion().layouts.take(slice(0, 2))
    assert (lower_bound(faulty, layouts) == lower_bound(scenario(), layouts)).all()
