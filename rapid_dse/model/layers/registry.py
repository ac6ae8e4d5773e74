"""Every kind of part that a layer can have, by name: a new one is a file beside this one, and a line in ``config/layer_names.py``.

A layer has a mixer, in which tokens look at each other, and an MLP, in which each is by itself. A part's module says as ``PART`` how it is
made for a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType

from rapid_dse.config.layer_names import PART_MODULES
from rapid_dse.config.model import Model
from rapid_dse.model.layers.part import Part

PARTS: Mapping[str, Callable[[Model], Part]] = MappingProxyType(
    {name: import_module(f"rapid_dse.model.layers.{module}").PART for name, module in PART_MODULES.items()}
)
