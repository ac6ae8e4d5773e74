"""Design-space exploration of LLM training and inference.

``import rapid_dse as rd`` gives ``rd.simulate``, ``rd.sweep``, ``rd.load``, ``rd.diff``, ``rd.model`` and ``rd.calibrate``; what they need
is loaded when one is used. Messages are those of the command line, as ``ValueError``; nothing is printed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapid_dse.api.calibrating import calibrate as calibrate
    from rapid_dse.api.cards import model as model
    from rapid_dse.api.comparing import diff as diff
    from rapid_dse.api.studies import Results as Results
    from rapid_dse.api.studies import load as load
    from rapid_dse.api.studies import sweep as sweep
    from rapid_dse.api.trials import TrialRow as TrialRow
    from rapid_dse.api.trials import simulate as simulate

__version__ = "0.1.0"

_API = {
    "simulate": "trials",
    "TrialRow": "trials",
    "sweep": "studies",
    "load": "studies",
    "Results": "studies",
    "diff": "comparing",
    "model": "cards",
    "calibrate": "calibrating",
}
_MODULES = ("simulate", "sweep", "model", "calibrate")  # which are modules of the package too: these can be called

__all__ = ["Results", "TrialRow", "__version__", "calibrate", "diff", "load", "model", "simulate", "sweep"]


class _Called(ModuleType):
    """A module of the package that has the name of a function: calling it calls that function."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return _function(self.__name__.rpartition(".")[2])(*arguments, **settings)


class _Package(ModuleType):
    """This package, in which such modules can be called as soon as they are loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULES and isinstance(value, ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)


def _function(name: str) -> Any:
    return getattr(import_module(f"rapid_dse.api.{_API[name]}"), name)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"rapid_dse.{name}")
    if name in _API:
        return _function(name)
    raise AttributeError(f"module 'rapid_dse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})


sys.modules[__name__].__class__ = _Package
