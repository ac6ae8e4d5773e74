"""Hydra's grammar of overrides, under ``python -O`` too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def parser() -> Any:
    """Hydra's parser of overrides.

    Its visitor steps over the bracket of a function's arguments and over the colon of a mapping inside of ``assert`` statements, which
    ``python -O`` and PYTHONOPTIMIZE leave out: range(1,4) then is an error. So the visitor is compiled with them.
    """
    from hydra.core.override_parser import overrides_visitor
    from hydra.core.override_parser.overrides_parser import OverridesParser

    visitor = overrides_visitor.HydraOverrideVisitor
    if sys.flags.optimize and not hasattr(visitor, "rapid_dse_compiled"):
        source = Path(overrides_visitor.__file__)
        names = {"__name__": overrides_visitor.__name__, "__file__": str(source)}
        exec(compile(source.read_text(encoding="utf-8"), str(source), "exec", dont_inherit=True, optimize=0), names)
        for name, method in vars(names["HydraOverrideVisitor"]).items():
            if name.startswith(("visit", "is_", "_create")):
                setattr(visitor, name, method)
        visitor.rapid_dse_compiled = True
    return OverridesParser.create()
