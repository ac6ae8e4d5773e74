"""ASTRA-sim's system settings, under its own names in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rapid_dse.trace.graph import COLLECTIVES, LARGEST

IMPLEMENTATION_KEYS = {name: f"{name.lower().replace('_', '-')}-implementation" for name in COLLECTIVES}


def check_algorithm(key: str, name: str) -> None:
    """Raise ValueError when no schedule has that name."""
    if name in ("ring", "direct", "halvingDoubling", "doubleBinaryTree"):
        return
    if name.startswith("direct") and name[6:].isdigit() and int(name[6:]) > 0:
        return
    raise ValueError(f"{key}: {name!r} is none of ring, direct, direct<K>, halvingDoubling, doubleBinaryTree")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemSettings:
    """How ranks run collectives."""

    algorithms: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(COLLECTIVES, ("ring",)))
    """By collective, one algorithm a dimension; a single one holds for all dimensions."""
    splits: int = 1
    """Chunks that a collective is cut into (``preferred-dataset-splits``)."""
    active_chunks: int = 1
    """Chunks that a dimension runs at a time (``active-chunks-per-dimension``)."""
    queues_per_dim: int = 1
    endpoint_delay: int = 10
    """ns before a rank sends, and after it receives."""
    local_mem_bw: float = 1600.0
    """GB/s (1e9) at which a reduction reads twice and writes once; more is faster."""
    scheduling_policy: str = "LIFO"
    collective_optimization: str = "localBWAware"
    group_algorithms: Mapping[str, str] = field(default_factory=dict)
    """By collective, of groups within the world on a network of several dimensions; else ASTRA-sim's own, a ring over one link a rank."""

    def __post_init__(self) -> None:
        for name in COLLECTIVES:
            for algorithm in self.algorithms[name]:
                check_algorithm(IMPLEMENTATION_KEYS[name], algorithm)
        for algorithm in self.group_algorithms.values():
            check_algorithm("group_algorithms", algorithm)
        least = {"preferred-dataset-splits": self.splits, "active-chunks-per-dimension": self.active_chunks}
        least["queues-per-dim"] = self.queues_per_dim
        for key, value in least.items():
            if value < 1:
                raise ValueError(f"{key} is {value}, it must be >= 1")
        if self.endpoint_delay < 0:
            raise ValueError(f"endpoint-delay is {self.endpoint_delay} ns, it must be >= 0")
        if not self.local_mem_bw > 0:
            raise ValueError(f"local-mem-bw is {self.local_mem_bw} GB/s, it must be > 0")
        if self.scheduling_policy not in ("LIFO", "FIFO"):
            raise ValueError(f"scheduling-policy is {self.scheduling_policy!r}, it must be LIFO or FIFO")
        if self.collective_optimization not in ("localBWAware", "baseline"):
            raise ValueError(f"collective-optimization is {self.collective_optimization!r}, it must be localBWAware or baseline")

    def algorithm(self, collective: str, dim: int, dims: int) -> str:
        """Name the algorithm of a collective in a dimension.

        ValueError when the list fits the network's ``dims`` not.
        """
        names = self.algorithms[collective]
        if len(names) == 1:
            return names[0]
        if len(names) != dims:
            raise ValueError(f"{IMPLEMENTATION_KEYS[collective]} names {len(names)} algorithms, the network has {dims} dimensions")
        return names[dim]

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SystemSettings:
        """Read the keys of ``system.json``; those that the event engine does not need are let through."""
        return SystemSettings(
            algorithms={name: _names(data, key) for name, key in IMPLEMENTATION_KEYS.items()},
            splits=_integer(data, "preferred-dataset-splits", 1),
            active_chunks=_integer(data, "active-chunks-per-dimension", 1),
            queues_per_dim=_integer(data, "queues-per-dim", 1),
            endpoint_delay=_integer(data, "endpoint-delay", 10),
            local_mem_bw=_number(data, "local-mem-bw", 1600),
            scheduling_policy=str(data.get("scheduling-policy", "LIFO")),
            collective_optimization=str(data.get("collective-optimization", "localBWAware")),
        )

    def to_json(self) -> dict[str, Any]:
        """Give ``system.json`` as ASTRA-sim wants it: with every key, since some have no default."""
        implementations = {key: list(self.algorithms[name]) for name, key in IMPLEMENTATION_KEYS.items()}
        return {
            "scheduling-policy": self.scheduling_policy,
            "collective-optimization": self.collective_optimization,
            "endpoint-delay": self.endpoint_delay,
            "active-chunks-per-dimension": self.active_chunks,
            "preferred-dataset-splits": self.splits,
            "queues-per-dim": self.queues_per_dim,
            "local-mem-bw": self.local_mem_bw,
            "boost-mode": 0,
            "peak-perf": 1,
            "roofline-enabled": 1,
            "trace-enabled": 1,
            **implementations,
        }


def _names(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = data.get(key, ["ring"])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} is {names!r}, it must be a list of names, one a dimension")
    return tuple(names)


def _number(data: Mapping[str, Any], key: str, default: float) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key} is {value!r}, it must be a number")
    return value


def _integer(data: Mapping[str, Any], key: str, default: int) -> int:
    value = data.get(key, default)
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer() or abs(value) > LARGEST:
        raise ValueError(f"{key} is {value!r}, it must be a whole number and at most 2^53")
    return int(value)
