"""Runs the modules of a package in which its options are defined, without what the rest of it needs.

Frameworks import PyTorch, CUDA extensions and each other before they define a single option. Here the modules that define options are
the package's own, from its unpacked wheel; all else that they import, and that is not installed, is a stand-in that takes whatever is done
with it while a module is loaded.
"""

from __future__ import annotations

import abc
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class _Kind(abc.ABCMeta):
    """Of stand-ins for classes: any attribute, index or comparison gives another stand-in or nothing."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _stand_in(name)
        setattr(cls, name, found)
        return found

    def __call__(cls, *given: Any, **named: Any) -> Any:
        if len(given) == 1 and not named and callable(given[0]):
            return given[0]  # a decorator
        return super().__call__()

    def __or__(cls, other: Any) -> Any:  # of a union with a real class that is left
        return cls if other is None or isinstance(other, _Kind) else other

    __ror__ = __or__

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __iter__(cls) -> Any:
        return iter(())

    def __lt__(cls, _: Any) -> bool:
        return False

    def __ge__(cls, _: Any) -> bool:
        return True


def _stand_in(name: str) -> type:
    def called(self: Any, *given: Any, **named: Any) -> Any:
        return given[0] if len(given) == 1 and not named and callable(given[0]) else self

    def attribute(_: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)

    def schema(*_: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()

    body = {
        "__init__": lambda self, *_, **__: None,
        "__call__": called,
        "__getattr__": attribute,
        "__get_pydantic_core_schema__": classmethod(schema),
        "__class_getitem__": classmethod(lambda cls, _: cls),
        "__iter__": lambda _: iter(()),
        "__enter__": lambda self: self,
        "__exit__": lambda *_: False,
        "__or__": lambda self, _: self,
        "__lt__": lambda *_: False,
        "__ge__": lambda *_: True,
        "__int__": lambda _: 0,
    }
    return _Kind(name, (), body)


class _Module(types.ModuleType):
    """A stand-in for a module, or for a package of which some modules are real."""

    def __init__(self, name: str, finder: Definitions) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "99.0"
        if name.startswith("__"):
            raise AttributeError(name)
        inner = f"{self.__name__}.{name}"
        if self._finder.source(inner) is not None:
            return importlib.import_module(inner)
        home = self._finder.module_of(self.__name__, name)
        found = _stand_in(name) if home is None else getattr(importlib.import_module(home), name)
        setattr(self, name, found)
        return found


class Definitions(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules: ``real`` ones (a trailing * stands for all below) of the packages in ``root``, installed ones, else stand-ins."""

    def __init__(self, root: Path, real: Sequence[str]) -> None:
        self._root, self._real = root, real
        self._packages = {path.stem for path in root.iterdir()}

    def source(self, name: str) -> Path | None:
        """The file of a real module; None where there is none."""
        if not any(name == each or (each.endswith("*") and name.startswith(each[:-1])) for each in self._real):
            return None
        base = self._root.joinpath(*name.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    def module_of(self, package: str, name: str) -> str | None:
        """The real module below a package that defines a class, which the package's own first lines would import from there."""
        for module in self._real:
            file = self.source(module) if module.startswith(f"{package}.") else None
            if file is not None and re.search(rf"^class {name}\b", file.read_text(), re.MULTILINE):
                return module
        return None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """How a module is loaded."""
        top = name.split(".")[0]
        if top in sys.stdlib_module_names:
            return None
        if top in self._packages:
            file = self.source(name)
            if file is not None:
                inside = [str(file.parent)] if file.name == "__init__.py" else None
                return importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
        else:
            for finder in sys.meta_path:
                found = finder.find_spec(name, path, target) if finder is not self else None
                if found is not None:
                    return found
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A stand-in."""
        return _Module(spec.name, self)

    def exec_module(self, module: types.ModuleType) -> None:
        """A stand-in runs nothing."""
