"""What pipelines must hold: how many chunks a model is cut into, and what each schedule asks of its layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.run import RECOMPUTE
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.schedule_names import SCHEDULES
from rapid_dse.parallel import schedules
from rapid_dse.parallel.expert_rules import Broken

if TYPE_CHECKING:
    from rapid_dse.parallel.layouts import Layouts


def counted_ends(scenario: Scenario) -> int:
    """Layers that embedding and loss count as where the framework splits a model over pipeline stages: 2, or 0."""
    return 2 if scenario.software.pipeline.pipeline_split == "megatron" else 0


def split_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """How a model may be cut into the chunks of a pipeline."""
    return [*_depth_rules(layouts, scenario), *_own_split_rules(layouts, scenario), *_chunk_rules(layouts)]


def _chunk_rules(layouts: Layouts) -> list[Broken]:
    """Which schedules have ``vpp`` chunks a stage."""
    interleaves = schedules.INTERLEAVES.take(layouts.schedule)
    several = ", ".join(name for name, has in zip(SCHEDULES, schedules.INTERLEAVES, strict=True) if has)
    return [
        (f"vpp > 1 goes with {several} alone", (layouts.vpp > 1) & ~interleaves),
        (f"{several} needs vpp > 1", (layouts.vpp == 1) & interleaves & (layouts.pp > 1)),
    ]


def schedule_rules(layouts: Layouts, micro_batches: NDArray[np.int64]) -> list[Broken]:
    """What each schedule asks of its own layouts."""
    rules: list[Broken] = []
    for code, (name, schedule) in enumerate(zip(SCHEDULES, schedules.SCHEDULE_CLASSES, strict=True)):
        own = layouts.schedule == code
        rules += [(text, own & broken) for text, broken in schedule.rules(name, layouts.pp, micro_batches)]
    return rules


def _depth_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """How many chunks a pipeline may have: as many as layers, two more where embedding and loss count as layers.

    A framework that balances by cost leaves stages empty, so that any number of stages goes; where a stage has several chunks it deals out
    layers.
    """
    ends, balanced = counted_ends(scenario), scenario.software.pipeline.pipeline_split == "balanced"
    too_many: NDArray[np.bool_] = layouts.pp * layouts.chunks > scenario.model.num_hidden_layers + ends
    too_many = too_many & (layouts.chunks > 1) if balanced else too_many
    most = "num_hidden_layers" + (" + 2 (embedding and loss count as layers)" if ends else "")
    fixed = schedules.CHUNKS.take(layouts.schedule)
    rules = [(f"pp · vpp must not exceed {most}", too_many & (fixed == 1))]
    for chunks in sorted({chunks for chunks in schedules.CHUNKS.tolist() if chunks > 1}):
        names = ", ".join(name for name, has in zip(SCHEDULES, schedules.CHUNKS.tolist(), strict=True) if has == chunks)
        rules.append((f"{chunks} · pp must not exceed {most} under {names}", too_many & (fixed == chunks)))
    return rules


def _own_split_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """What a user's own split over stages must hold; where a framework balances by cost, inner stages may be empty."""
    split = scenario.parallel.stage_layers
    if split is None:
        return []
    pp, layers = layouts.pp, scenario.model.num_hidden_layers
    named, place = f"parallel.stage_layers={','.join(map(str, split))}", np.arange(len(split))
    ends = (place == 0).astype(int) + (place == layouts.head_stage[:, None])
    needed = layouts.chunks[:, None] - ends if scenario.software.pipeline.pipeline_split != "balanced" else np.zeros((len(pp), 1))
    empty: NDArray[np.bool_] = np.any(np.array(split) < needed, axis=1)
    return [
        (f"{named} must have an entry for each of pp stages", pp != len(split)),
        (f"{named} adds up to {sum(split)}; it must add up to num_hidden_layers={layers}", np.full(len(pp), sum(split) != layers)),
        (f"{named}: each of a stage's vpp chunks needs a layer, the embedding or the head", empty),
    ]


def recompute_rules(layouts: Layouts, scenario: Scenario) -> list[Broken]:
    """Settings of one mode of recomputation alone."""
    of, rules = scenario.parallel, []
    if of.recompute_modules is not None:
        other = layouts.recompute != RECOMPUTE.index("selective")
        rules.append(("parallel.recompute_modules goes with recompute=selective alone", other))
    if of.recompute_layers is not None:
        rules.append(("parallel.recompute_layers goes with recompute=full alone", layouts.recompute != RECOMPUTE.index("full")))
    return rules
