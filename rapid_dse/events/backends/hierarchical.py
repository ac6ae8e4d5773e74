"""backend=full_astrasim_hierarchical: a layer's graph and the pipeline's graph on the event engine, one after the other.

Congestion within a block and within the pipeline is seen, that between them is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import runs
from rapid_dse.events.layer_runs import LayerTimes, check_failed_links, faulty_blocks, run_layers
from rapid_dse.events.layout_detail import LayoutDetail, PassSeconds
from rapid_dse.events.machine import Machine, fault_ends
from rapid_dse.events.one_by_one import Watch, price_each
from rapid_dse.events.programs.coarse_pipeline import BlockPasses
from rapid_dse.events.programs.script import Script
from rapid_dse.events.quantities import stage_works
from rapid_dse.events.step_runs import priced, stage_for, stage_script
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.simulate.results import Priced
from rapid_dse.trace.graph import Ints

INSTEAD = "use backend=hybrid or full_astrasim_flattened, or give that dimension their size"


def price(scenario: Scenario, layouts: Layouts, watch: Watch | None = None, names: Sequence[str] | None = None) -> Priced:
    """Prices legal, resolved layouts one by one.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead.
    """
    return price_each(scenario, layouts, check, run_step, watch, names)


def check(one: LayoutDetail) -> None:
    """Refuses a layout that this backend cannot run; ``ValueError`` with what to use instead."""
    cluster = one.cluster()
    require_own_dimension(one, cluster)
    runs.check_links(cluster)
    for fault in cluster.topology.faulty_links:
        fault_ends(cluster.topology, fault)
    experts = one.experts
    check_failed_links(cluster, experts)
    block = cluster.part(cluster.rank[0, experts.blocks[0]])[0]
    runs.check_engine(one.scenario, one.degree("ep"), block.topology, _pipeline(one, cluster)[0].topology)


def require_own_dimension(one: LayoutDetail, cluster: Machine) -> None:
    """Refuses a layout whose first active network dimensions (a torus of two is two) carry anything but exactly tp and cp, or these and
    the replicas that a block shares its experts with.

    Raises:
        ValueError: with the dimension, what it carries, and what to use instead.
    """
    block, topology = cluster.rank[0, 0], cluster.topology
    if block.size == 1:
        return  # a block without transfers needs no dimension
    sizes = [dimension.size for dimension in topology.dimensions]
    if _fills(cluster, block, sizes) or (one.degree("ep") > 1 and _fills(cluster, cluster.rank[0, one.experts.blocks[0]], sizes)):
        return
    span = [len(np.unique(column)) for column in cluster.coordinates(block)]
    raise ValueError(
        f"hw.network.dimensions.{cluster.dimension[0]} has {sizes[0]} places and parallel.tp·cp is {block.size}, of which it holds "
        f"{span[0]}: full_astrasim_hierarchical needs the first active dimensions to carry exactly tp and cp; {INSTEAD}"
    )


def _fills(cluster: Machine, ranks: Ints, sizes: Sequence[int]) -> bool:
    """Whether ranks are all those of the first dimensions, and of one place of the others."""
    span = [len(np.unique(column)) for column in cluster.coordinates(ranks)]
    first = next((count for count in range(1, len(sizes)) if prod(sizes[:count]) >= ranks.size), len(sizes))
    return span[:first] == sizes[:first] and prod(sizes[:first]) == ranks.size and prod(span[first:]) == 1


def run_step(one: LayoutDetail) -> tuple[Priced, dict[str, runs.Run]]:
    """The results of one layout, and the runs of its blocks and of the pipeline of them."""
    cluster = one.cluster()
    experts = one.experts
    faulty = faulty_blocks(cluster, experts)
    every = [(int(p), int(b)) for p, b in np.ndindex(len(cluster.rank), len(experts.blocks))]
    # one healthy block stands for all of them
    wanted = [*next(([block] for block in every if block not in faulty), []), *faulty]
    blocks = {block: run_layers(one, cluster, block) for block in wanted}
    part, places = _pipeline(one, cluster)
    stage = stage_for(one, part, places, experts)
    scripts: list[Script] = []
    role = np.full(part.topology.ranks, -1, np.int64)
    for block, (times, _) in blocks.items():
        first = len(scripts)
        scripts += _stage_scripts(one, stage, times)
        _assign(role, places, first, (block[0], experts.blocks[block[1]]) if block in faulty else None)
    done = runs.run(one.scenario, stage, scripts, role, "pipeline")
    kept = {name: run for _, block_time in blocks.values() for name, run in block_time.items()}
    return priced(one, done), kept | {"pipeline": done}


def _pipeline(one: LayoutDetail, cluster: Machine) -> tuple[Machine, Ints]:
    """The network of the pipeline: one rail stands for all, unless a link on some rail is faulty or experts' copies lie on several."""
    every = bool(cluster.topology.faulty_links) or not one.experts.one_a_rail
    return cluster.part(cluster.rank if every else cluster.rank[..., :1])


def _stage_scripts(one: LayoutDetail, stage: runs.Stage, times: Sequence[LayerTimes]) -> list[Script]:
    layers, around = [layer.passes() for layer in times], times[0]
    passes = BlockPasses(stage.style.labels, layers, [layer.weights for layer in times], around.regather, around.end_passes())
    seconds = tuple((forward.seconds, backward.seconds) for forward, backward, *_ in layers)
    works = stage_works(one, PassSeconds(seconds, around.end("embedding"), around.end("head")))
    return [stage_script(one, stage.style, number, work, passes) for number, work in enumerate(works)]


def _assign(role: Ints, places: Ints, first: int, block: tuple[int, Ints] | None) -> None:
    """Gives the ranks of a block (its stage and data-parallel ranks; None: all) the scripts of their stages, which start at ``first``."""
    stages = np.broadcast_to(np.arange(len(places))[:, None, None, None], places.shape)
    where = (slice(None), slice(None)) if block is None else block
    role[places[where]] = first + stages[where]
