"""Every kind of part that a layer can have, by name: a new one is a file beside this one, and a line in ``config/layer_names.py``.

A layer has a mixer, in which tokens look at each other, and an MLP, in which each is by itself. A part's module says as ``PART`` how it is
made for a model.
"""

from __future__ import annotations

from importlib import import_module

from rapid_dse.config.layer_names import PART_MODULES
from rapid_dse.config.model import Model
from rapid_dse.model.layers.part import Part


def part_of(model: Model, name: str) -> Part:
    """The part of a model's layers that has the name; its module is imported when a model has it."""
    made: Part = import_module(f"rapid_dse.model.layers.{PART_MODULES[name]}").PART(model)
    return made
