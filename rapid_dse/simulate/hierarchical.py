"""backend=full_astrasim_hierarchical: a layer's graph and the pipeline's graph on the event engine, one after the other.

Congestion within a block and within the pipeline is seen, that between them is not.
"""

from __future__ import annotations

from math import prod

import numpy as np

from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.network.cluster import Cluster
from rapid_dse.simulate import runs
from rapid_dse.simulate.blocks import LayerTimes, faulty_blocks, run_layer
from rapid_dse.simulate.quantities import Priced1, one_layout, operators_of, stage_works
from rapid_dse.simulate.results import Priced
from rapid_dse.simulate.steps import priced, stage_for, stage_script
from rapid_dse.trace.coarse import BlockPasses
from rapid_dse.trace.graph import Ints
from rapid_dse.trace.script import Script

INSTEAD = "use backend=hybrid or full_astrasim_flattened, or give that dimension their size"


def price(scenario: Scenario, layouts: Layouts) -> Priced:
    """Prices legal, resolved layouts one by one.

    Raises:
        ValueError: what cannot run on this backend, with what to use instead.
    """
    runs.check_backend(scenario)
    ready, block = operators_of(scenario, layouts)
    every = [one_layout(scenario, layouts, row, ready, block) for row in range(len(layouts))]
    for one in every:
        require_own_dimension(one, one.cluster())
    return Priced.concatenate([priced(one, run_step(one)[0]) for one in every])


def require_own_dimension(one: Priced1, cluster: Cluster) -> None:
    """Refuses a layout whose first active network dimension carries anything but exactly tp and cp.

    Raises:
        ValueError: with the dimension, what it carries, and what to use instead.
    """
    block, topology = cluster.rank[0, 0], cluster.topology
    if block.size == 1:
        return  # a block without transfers needs no dimension
    span = [len(np.unique(column)) for column in cluster.coordinates(block)]
    first = topology.dimensions[0]
    if span[0] == block.size == first.size and prod(span[1:]) == 1:
        return
    raise ValueError(
        f"hw.network.dimensions.{cluster.dimension[0]} has {first.size} places and parallel.tp·cp is {block.size}, of which it holds "
        f"{span[0]}: full_astrasim_hierarchical needs the first active dimension to carry exactly tp and cp; {INSTEAD}"
    )


def run_step(one: Priced1) -> tuple[runs.Run, list[runs.Run]]:
    """Runs the blocks, then the pipeline of them: the pipeline's run, and the blocks'."""
    cluster = one.cluster()
    faulty = faulty_blocks(cluster)
    blocks = {block: run_layer(one, cluster, cluster.rank[block]) for block in [(0, 0), *faulty]}
    healthy = _healthy(one, cluster, [block for block in blocks if block not in faulty])
    # one rail stands for all, unless a link on some rail is faulty
    chosen = cluster.rank if cluster.topology.faulty_links else cluster.rank[..., :1]
    part, places = cluster.part(chosen)
    stage = stage_for(one, part, places)
    scripts: list[Script] = []
    role = np.full(part.topology.ranks, -1, np.int64)
    variants = [(healthy if healthy is not None else blocks[0, 0][0], None), *((blocks[block][0], block) for block in faulty)]
    for times, block in variants:
        first = len(scripts)
        scripts += _stage_scripts(one, stage, times)
        _assign(role, places, first, block)
    done = runs.run(one.scenario, stage, scripts, role, "pipeline")
    return done, [run for _, run in blocks.values()]


def _healthy(one: Priced1, cluster: Cluster, blocks: list[tuple[int, int]]) -> LayerTimes | None:
    """The times of a block without faults; the first one stands for all, unless it has some itself."""
    if blocks:
        return run_layer(one, cluster, cluster.rank[blocks[0]])[0]
    faulty = set(faulty_blocks(cluster))
    for block in np.ndindex(*cluster.rank.shape[:2]):
        if block not in faulty:
            return run_layer(one, cluster, cluster.rank[block])[0]
    return None


def _stage_scripts(one: Priced1, stage: runs.Stage, times: LayerTimes) -> list[Script]:
    forward, backward = times.passes()
    passes = BlockPasses(stage.style.labels, forward, backward, times.weights, times.regather)
    works = stage_works(one, forward.seconds, backward.seconds)
    return [stage_script(one, stage.style, number, work, passes) for number, work in enumerate(works)]


def _assign(role: Ints, places: Ints, first: int, block: tuple[int, int] | None) -> None:
    """Gives the ranks of a block (None: of all) the scripts of their stages, which start at ``first``."""
    stages = np.broadcast_to(np.arange(len(places))[:, None, None, None], places.shape)
    where = (slice(None), slice(None)) if block is None else block
    role[places[where]] = first + stages[where]
