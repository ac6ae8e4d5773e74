"""Predicted against measured collectives: what ``kernels.csv`` calls an interconnect, as a network of this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rapid_dse.analysis.error_figures import error_figures
from rapid_dse.config.hardware import Network
from rapid_dse.interconnect import closed_form
from rapid_dse.interconnect.nccl import DEFAULT, Nccl
from rapid_dse.parallel.placement import Floats
from rapid_dse.parallel.span import Span

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv", "broadcast")


@dataclass(frozen=True)
class Fabric:
    """A measured machine as a variant of a chip's network.

    ``hardware`` names the chip file whose network it is (None: the row's own); ``node`` and ``outside`` are fields that replace those
    of the widest dimension of the node and of the dimension between nodes; ``switch_reduction`` False where the run turned NVLS
    off; ``nics`` the network cards of a node, where the runs left some idle (null: one a GPU).
    """

    hardware: str | None = None
    node: Mapping[str, Any] | None = None
    outside: Mapping[str, Any] | None = None
    switch_reduction: bool = True
    nics: int | None = None


# By what the text of ``interconnect`` (and the chip) holds; the first that matches. Links that the source does not name are inferred from
# the plateau of the row's own bandwidth against size: a property of that machine, the same for all its rows and both directions.
FABRICS: tuple[tuple[str, str, Fabric], ...] = (
    # Vidur's PCIe machines: bridged pairs, PCIe between. Between nodes about 7.7 GB/s at 1 MiB (it falls to 2.5 for large messages:
    # not modelled, a TCP path that chokes).
    ("a100", "a100_pairwise_nvlink", Fabric("a100_pcie", outside={"bandwidth": 12.5e9, "utilization": 0.61, "latency": 10e-6})),
    # Its H100 pairs are H100 PCIe or NVL: the A100's bridge, PCIe 5 of twice PCIe 4's bandwidth.
    ("h100", "h100_pairwise_nvlink", Fabric("a100_pcie", node={"bandwidth": 31.5e9, "utilization": 0.88})),
    # Vidur's A100 nodes reach 5.9 GB/s with one GPU a node, 11.9 with two, 22.4 with four and no more with eight: four cards a node.
    ("a100", "a100_dgx", Fabric(outside={"bandwidth": 6.25e9, "utilization": 0.49, "latency": 15e-6}, nics=4)),
    # Its H100 nodes send 36 GB/s: a 400 Gb/s port, or two of 200 Gb/s; one connection between two GPUs does not fill it.
    ("h100", "h100_dgx", Fabric(outside={"utilization": 0.73})),
    # AWS's fabric: a datagram protocol whose acknowledgements and reordering cost many microseconds a hop.
    ("", "EFA", Fabric(outside={"utilization": 0.95, "latency": 60e-6})),
    # Runs that switch NVLS off. "algo Ring" alone is what NCCL chose, and forcing a tree is no choice of NCCL's either.
    ("", "NVLS_ENABLE=0", Fabric(switch_reduction=False)),
    ("", "NVLS off", Fabric(switch_reduction=False)),
)


def predict_collectives(table: pd.DataFrame, networks_by_name: Mapping[str, Network], nccl: Nccl = DEFAULT) -> Floats:
    """Seconds that the closed forms give for measured collectives.

    Args:
        table: rows of one of ``KINDS``, with ``hw, kind, n_gpus, n_nodes, interconnect, size_bytes``.
        networks_by_name: the networks of ``conf/hw``, by chip.

    Returns:
        seconds, shape ``(len(table),)``.

    Raises:
        ValueError: a kind that is no collective, or a chip that is not in ``networks_by_name``.
    """
    unknown = set(table["kind"]) - set(KINDS)
    if unknown:
        raise ValueError(f"kind={sorted(unknown)[0]}; allowed: {', '.join(KINDS)}")
    seconds = np.full(len(table), np.nan)
    texts = table["interconnect"].fillna("").astype(str)
    places = pd.Series(np.arange(len(table)))
    keys = [table[name].reset_index(drop=True) for name in ("hw", "kind")] + [texts.reset_index(drop=True)]
    for (chip, kind, text), group in places.groupby(keys, sort=False):
        rows = table.iloc[group.to_numpy()]
        fabric = fabric_of(str(chip), str(text))
        name = fabric.hardware or str(chip)
        if name not in networks_by_name:
            raise ValueError(f"hw={name} has no network; allowed: {', '.join(sorted(networks_by_name))}")
        network = variant(networks_by_name[name], fabric)
        nodes = rows["n_nodes"].fillna(1.0).to_numpy(np.float64)
        gpus = rows["n_gpus"].to_numpy(np.float64)
        run: Callable[..., Floats] = getattr(closed_form, str(kind))
        sizes = rows["size_bytes"].to_numpy(np.float64)
        free = _idle_share(network, fabric, gpus / nodes)
        for share in np.unique(free):
            here = free == share
            span = span_of(network, gpus[here], nodes[here])
            seconds[group.to_numpy()[here]] = run(sizes[here], span, _faster_outside(network, float(share)), nccl)
    return seconds


def fabric_of(chip: str, interconnect: str) -> Fabric:
    """The variant of a chip's network that a row's ``interconnect`` text stands for; the chip's own where it says nothing else."""
    for name, part, fabric in FABRICS:
        if chip.startswith(name) and part in interconnect:
            return fabric
    return Fabric()


def variant(network: Network, fabric: Fabric) -> Network:
    """The network with the fabric's figures in place of its own."""
    dimensions = list(network.dimensions)
    for index, changes in ((len(dimensions) - 2, fabric.node), (len(dimensions) - 1, fabric.outside)):
        if changes:
            dimensions[index] = dimensions[index].model_copy(update=dict(changes))
    if not fabric.switch_reduction:
        dimensions = [dimension.model_copy(update={"in_network_reduction": False}) for dimension in dimensions]
    return network.model_copy(update={"dimensions": tuple(dimensions)})


def span_of(network: Network, gpus: npt.ArrayLike, nodes: npt.ArrayLike) -> Span:
    """The footprint of one group alone on the machine: evenly over the nodes, the first GPUs of each; arrays ``(n_rows,)``."""
    group, outside = np.asarray(gpus, np.float64), np.asarray(nodes, np.float64)
    inside = group / outside
    members = []
    for dimension in network.dimensions[:-1]:
        gpus_inside = inside if dimension.size is None else np.minimum(inside, dimension.size)
        members.append(gpus_inside)
        inside = inside / gpus_inside
    members.append(outside * inside)
    return Span(tuple(members), tuple(np.ones(group.shape) for _ in members))


def error_table(table: pd.DataFrame, seconds: npt.ArrayLike) -> pd.DataFrame:
    """Errors of predictions against ``measured.time_s``, by kind, chip and number of GPUs, and the row ``all``.

    Columns: n; and as shares of the measured time: mape, median and p90 of the absolute error, bias (mean signed error).
    """
    error = np.asarray(seconds, np.float64) / table["measured.time_s"].to_numpy(np.float64) - 1.0
    by = ["kind", "hw", "n_gpus"]
    lines = table[by].reset_index(drop=True).assign(error=error)
    every = lines.assign(kind="all", hw="", n_gpus=0)
    return pd.concat([error_figures(lines, by, sort=True), error_figures(every, by)])


def _idle_share(network: Network, fabric: Fabric, per_node: Floats) -> Floats:
    """How much more than its own share of the node's cards a GPU has while the others of the node are idle."""
    if fabric.nics is None:
        return np.ones(per_node.shape)
    inside = np.prod([dimension.size or 1 for dimension in network.dimensions[:-1]])
    return inside / np.maximum(per_node, fabric.nics)


def _faster_outside(network: Network, factor: float) -> Network:
    last = network.dimensions[-1]
    return variant(network, Fabric(outside={"bandwidth": last.bandwidth * factor}))
