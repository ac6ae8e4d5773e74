"""What each parallelism's traffic costs a layer, a micro-batch and a step, before anything hides it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import PRECISION_BYTES, Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.layouts import Layouts
from rapid_dse.model.operators import local_kv_heads
from rapid_dse.network import closed_form
from rapid_dse.network.placement import Placement, place
from rapid_dse.simulate.operators import compute_bytes

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Traffic:
    """Seconds of transfers and bytes that leave a GPU, ``(n_layouts,)`` each.

    ``tp_forward``, ``tp_backward`` and ``tp_gather_again`` (sequence parallelism's second gather of a layer's inputs, for the weight
    gradient) are of one layer and micro-batch, so are ``cp_forward`` and ``cp_backward``; ``pp_hop`` is one send to the next stage.
    """

    tp_forward: FloatColumn
    tp_backward: FloatColumn
    tp_gather_again: FloatColumn
    cp_forward: FloatColumn
    cp_backward: FloatColumn
    pp_hop: FloatColumn
    tp_bytes: FloatColumn
    cp_bytes: FloatColumn
    pp_bytes: FloatColumn


def effective_network(scenario: Scenario) -> Network:
    """The network as the framework's collectives find it: beyond the innermost dimension its own share and latency apply."""
    inner, *outer = scenario.hw.network.dimensions
    software = scenario.software
    changed = [
        dimension.model_copy(
            update={
                "utilization": dimension.utilization * software.fabric_efficiency,
                "latency": dimension.latency + software.fabric_latency,
            }
        )
        for dimension in outer
    ]
    return scenario.hw.network.model_copy(update={"dimensions": (inner, *changed)})


def placement_of(scenario: Scenario, layouts: Layouts) -> Placement:
    """Where each layout's groups lie on the network."""
    degrees = {name: getattr(layouts, name) for name in ("tp", "cp", "ep", "dp", "pp")}
    return place(degrees, scenario.parallel.order, scenario.hw.network)


def traffic(scenario: Scenario, layouts: Layouts, placement: Placement, network: Network) -> Traffic:
    """The transfers of one layer and one micro-batch."""
    model = scenario.model
    tokens = layouts.micro_batch_size * (scenario.workload.seq_len / layouts.cp)
    width = compute_bytes(scenario)
    stream = tokens * (model.hidden_size * width)
    sequence = layouts.sequence_parallel
    reduce = closed_form.all_reduce(stream, placement.tp, network)
    gather = closed_form.all_gather(stream, placement.tp, network)
    scatter = closed_form.reduce_scatter(stream, placement.tp, network)
    nodes = placement.tp.size / placement.tp.members[0]
    skew = scenario.software.node_skew * (nodes - 1)
    gather, scatter, reduce = gather + skew, scatter + skew, reduce + skew
    each = np.where(sequence, gather + scatter, reduce)
    keys = tokens * local_kv_heads(model, layouts.tp) * model.attention_head_dim * (2 * width)
    hop = closed_form.send_recv(keys, placement.cp, network)
    # Each tensor-parallel rank sends its share; without sequence parallelism the node gathers it again (arXiv 2104.04473, section 4.1).
    boundary = stream / layouts.tp
    regather = np.where(sequence, 0.0, gather)
    share = (layouts.tp - 1) / layouts.tp
    return Traffic(
        tp_forward=2 * each,
        tp_backward=2 * each,
        tp_gather_again=np.where(sequence, 2 * gather, 0.0),
        cp_forward=(layouts.cp - 1) * hop,
        cp_backward=2 * (layouts.cp - 1) * hop,
        pp_hop=closed_form.send_recv(boundary, placement.pp, network) + np.where(layouts.pp > 1, regather, 0.0),
        tp_bytes=np.where(sequence, 10.0, 8.0) * share * stream,
        cp_bytes=3 * (layouts.cp - 1) * keys,
        pp_bytes=2.0 * boundary * (layouts.pp > 1),
    )


def gradient_bytes(scenario: Scenario) -> int:
    """Bytes of one gradient on the wire."""
    return PRECISION_BYTES[scenario.software.reduce_dtype or scenario.software.gradient_dtype]
