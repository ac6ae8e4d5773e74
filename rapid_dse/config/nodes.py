"""A node is the first dimensions of the network: ``hw.gpus_per_node`` and their sizes are one fact, whichever of the two is set.

On the raw mapping of a hardware file, before anything in it is validated: what is no number is left to the schema.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

from rapid_dse.config.fields import MOST_GPUS

KEY = "hw.gpus_per_node"
_DIMENSIONS = "hw.network.dimensions"


def gpus_in_node(sizes: Sequence[int | None], num_gpus: int) -> int:
    """GPUs in a node where nothing else is said: in all network dimensions but the outermost.

    Args:
        sizes: of the dimensions, inner to outer; None is what the inner ones leave.
        num_gpus: of the machine, which is one node where its only dimension is open.
    """
    if len(sizes) == 1:
        return sizes[0] or num_gpus
    return _products(sizes[:-1])[-1]


def dimensions_in_node(sizes: Sequence[int | None], gpus: int) -> int | None:
    """How many dimensions, from the innermost, together hold the ``gpus`` of a node; None where no number of them does."""
    if list(sizes) == [None]:
        return 1
    products = _products([size for size in sizes if size is not None])
    return products.index(gpus) + 1 if gpus in products else None


def settles(key: str) -> bool:
    """Whether a dotted key sets the GPUs of a node or the size of a dimension."""
    return key in (KEY, _DIMENSIONS) or (key.startswith(f"{_DIMENSIONS}.") and key.endswith(".size"))


def follow(hw: dict[str, Any], given: Collection[str], before: int | None) -> None:
    """Settles, in place, what follows from what was set: the size of the node's outermost dimension, or the GPUs of a node.

    Args:
        hw: the hardware, with the given values in it.
        given: dotted keys that were set.
        before: ``raw_dimensions_in_node`` of the hardware as it was.

    Raises:
        ValueError: where no size of the dimension gives a node of so many GPUs.
    """
    sized = any(settles(key) for key in given if key != KEY)
    if KEY not in given and not sized:
        return
    sizes = _sizes(hw)
    if sizes is None:
        return
    if KEY not in given:
        if before is not None and before < len(sizes) and None not in sizes[:before]:
            hw["gpus_per_node"] = _products(sizes[:before])[-1]
        else:
            hw["gpus_per_node"] = None
        return
    gpus = _whole(hw.get("gpus_per_node"))
    if sized or gpus is None:
        return
    last = (before or max(1, len(sizes) - 1)) - 1
    if sizes[last] is None:
        raise ValueError(f"{KEY}={gpus}: {_DIMENSIONS}.{last} is open, so it holds all GPUs and no node; allowed: a size for it")
    inside = _products(sizes[:last])[-1] if last else 1
    if gpus % inside:
        raise ValueError(f"{KEY}={gpus}: inner dimensions hold {inside} GPUs each; allowed: a multiple of {inside}, or other sizes")
    hw["network"]["dimensions"][last]["size"] = gpus // inside


def set_beside_same_sizes(hw: Any, plain: Any) -> bool:
    """Whether a file sets the GPUs of a node over another's hardware, ``plain``, and leaves the sizes of its dimensions as they are."""
    own = hw.get("gpus_per_node") if isinstance(hw, Mapping) else None
    return own is not None and own != plain.get("gpus_per_node") and _sizes(hw) == _sizes(plain)


def raw_dimensions_in_node(hw: Any) -> int | None:
    """How many dimensions of an unvalidated hardware are a node; None where that cannot be told."""
    sizes = _sizes(hw)
    if sizes is None:
        return None
    gpus = _whole(hw.get("gpus_per_node"))
    return max(1, len(sizes) - 1) if gpus is None else dimensions_in_node(sizes, gpus)


def with_gpus_in_node(hw: Any) -> Any:
    """An unvalidated hardware with ``gpus_per_node`` filled in where it is missing; 1 where the network is none, which the schema tells."""
    if not isinstance(hw, Mapping) or hw.get("gpus_per_node") is not None:
        return hw
    sizes, num_gpus = _sizes(hw), _whole(hw.get("num_gpus", 64))
    return {**hw, "gpus_per_node": 1 if sizes is None or num_gpus is None else gpus_in_node(sizes, num_gpus)}


def _sizes(hw: Any) -> list[int | None] | None:
    network = hw.get("network") if isinstance(hw, Mapping) else None
    dimensions = network.get("dimensions") if isinstance(network, Mapping) else None
    sizes: list[int | None] = []
    for dimension in dimensions if isinstance(dimensions, list | tuple) else ():
        size = dimension.get("size") if isinstance(dimension, Mapping) else getattr(dimension, "size", "")
        whole = _whole(size)
        if whole is None and size is not None:
            return None
        sizes.append(whole)
    return sizes if sizes and None not in sizes[:-1] else None


def _whole(value: Any) -> int | None:
    # Beyond the bounds of a degree it is the schema's to say what is wrong.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST_GPUS or value != int(value):
        return None
    return int(value)


def _products(sizes: Sequence[int | None]) -> list[int]:
    return list(accumulate((size or 1 for size in sizes), mul))
