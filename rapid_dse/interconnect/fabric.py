"""The fabric between nodes as jobs meet it: what a cluster makes of the chip's network, and what measured bus bandwidths say of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from rapid_dse.config.cluster import Cluster
from rapid_dse.config.hardware import Network
from rapid_dse.interconnect import closed_form
from rapid_dse.parallel.placement import Floats, place

MESSAGE = 1e9  # bytes of the all-reduce behind ``cluster.allreduce_busbw``
NOISE = 0.01  # half of the summed squares of log bandwidth that tables of one state differ by: 5 % in each of eight figures
MOST_LATENCY = 2e-3  # s, the bound of ``cluster.hop_latency``


def met(network: Network, node_dimensions: int, cluster: Cluster) -> Network:
    """The network with the cluster's cards, its share of their bandwidth and its latency on all dimensions beyond the node."""
    inner, outer = network.dimensions[:node_dimensions], network.dimensions[node_dimensions:]
    changed = [
        dimension.model_copy(
            update={
                "bandwidth": dimension.bandwidth * cluster.nics_per_gpu,
                "utilization": dimension.utilization * cluster.fabric_efficiency,
                "latency": dimension.latency + cluster.hop_latency,
            }
        )
        for dimension in outer
    ]
    return network.model_copy(update={"dimensions": (*inner, *changed)})


@lru_cache(maxsize=64)
def told(cluster: Cluster, network: Network, node_dimensions: int) -> Cluster:
    """The cluster with ``fabric_efficiency``, ``hop_latency`` and ``trees`` as its ``allreduce_busbw`` tells them, or as it is.

    NCCL chooses between rings and trees, unless rings alone come nearer by more than such tables' noise; by least squares of log bandwidth.
    """
    if cluster.allreduce_busbw is None:
        return cluster
    from scipy.optimize import least_squares

    nodes = np.array([count for count, _ in cluster.allreduce_busbw], np.int64)
    measured = np.log([rate for _, rate in cluster.allreduce_busbw])
    default = Cluster.model_fields["hop_latency"].default
    told_twice = []
    for trees in (True, False):

        def off(values: Floats, trees: bool = trees) -> Floats:
            # a table that latency does not explain keeps the default's
            return np.append(
                np.log(_bus_bandwidth(_with(cluster, values, trees), network, node_dimensions, nodes)) - measured, values[1] / 50
            )

        fit = least_squares(off, [0.8, 0.1], bounds=([0.05, -3.0], [1.0, np.log(MOST_LATENCY / default)]))
        told_twice.append((float(fit.cost) + (0.0 if trees else NOISE), _with(cluster, fit.x, trees)))
    return min(told_twice, key=lambda fault: fault[0])[1]


def _with(cluster: Cluster, values: Floats, trees: bool) -> Cluster:
    """The cluster with an efficiency and a latency, the latter as the logarithm of its ratio to the default."""
    latency = Cluster.model_fields["hop_latency"].default * float(np.exp(values[1]))
    given = {"allreduce_busbw": None, "fabric_efficiency": float(values[0]), "hop_latency": latency, "trees": trees}
    return cluster.model_copy(update=given)


def _bus_bandwidth(cluster: Cluster, network: Network, node_dimensions: int, nodes: np.ndarray) -> Floats:
    """Bus bandwidth of an all-reduce over all GPUs of so many nodes, bytes/s, ``(n,)``: 2 (n - 1) / n of the message over its time."""
    node = int(np.prod([dimension.size or 1 for dimension in network.dimensions[:node_dimensions]]))
    gpus = nodes * node
    span = place({"dp": gpus}, ("tp", "cp", "ep", "dp", "pp"), network).dp
    machine = met(network, node_dimensions, cluster)
    if cluster.trees:
        seconds = closed_form.all_reduce(MESSAGE, span, machine)
    else:
        seconds = closed_form.reduce_scatter(MESSAGE, span, machine) + closed_form.all_gather(MESSAGE, span, machine)
    bandwidth: Floats = 2.0 * (gpus - 1) / gpus * MESSAGE / seconds
    return bandwidth
