"""Loading of compiled code."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)


@contextmanager
def loading_numba(what: str) -> Iterator[None]:
    """Spares numba what takes a third of its loading: SciPy, whose BLAS it looks for, and garbage collection over its imports.

    From numba's cache compiled code takes a fraction of a second: only who waits longer is told that ``what`` is compiled.
    """
    name, collects = "scipy.linalg", gc.isenabled()
    hidden = name not in sys.modules
    tell = threading.Timer(3.0, _LOG.warning, [f"compiling {what}"])
    tell.start()
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # to Python: there is no such module
    gc.disable()
    try:
        yield
    finally:
        tell.cancel()
        if hidden:
            del sys.modules[name]
        if collects:
            gc.enable()
