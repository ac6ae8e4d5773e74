"""Loading of compiled code."""

from __future__ import annotations

import gc
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

_LOG = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])
_WAITING = threading.Event()  # set while another process compiles what this one needs


@contextmanager
def loading_numba(what: str) -> Iterator[None]:
    """Spares numba what takes a third of its loading: SciPy, whose BLAS it looks for, and garbage collection over its imports.

    From numba's cache compiled code takes a fraction of a second: only who waits longer is told that ``what`` is compiled.
    """
    name, collects = "scipy.linalg", gc.isenabled()
    hidden = name not in sys.modules
    tell = threading.Timer(3.0, _tell, [what])
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


def _tell(what: str) -> None:
    """Says what takes long: one process compiles, and others that came at the same time wait for it."""
    _LOG.warning("%s %s", "waiting for another command that is compiling" if _WAITING.is_set() else "compiling", what)


def compiled_once(signature: str, key: str, **options: Any) -> Callable[[_F], _F]:
    """Decorate a function that numba compiles at once and keeps in its cache.

    Of several processes that find the cache empty, one compiles, and the others wait and then load what it compiled. What is
    compiled is noted beside the cache, so that later processes do not wait for each other.

    Args:
        signature: the types of result and arguments, in numba's words.
        key: names the source that is compiled; it must change where the source does.
        options: numba's.
    """
    import numba

    def decorate(function: _F) -> _F:
        try:
            compiled = numba.njit(cache=True, **options)(function)
            cached = is_own(Path(compiled.stats.cache_path))
        except RuntimeError:  # neither the package's folder nor the user's can be written
            cached = False
        if not cached:  # compiled for this process alone
            compiled = numba.njit(**options)(function)
            compiled.compile(signature)
            compiled.disable_compile()
            return compiled  # type: ignore[no-any-return]
        note, text = Path(compiled.stats.cache_path) / f"{function.__name__}.compiled", f"{key} numba {numba.__version__}"
        with _alone(note, text):
            compiled.compile(signature)
        compiled.disable_compile()
        return compiled  # type: ignore[no-any-return]

    return decorate


def is_own(folder: Path) -> bool:
    """Whether nobody but this user (and root) can have put files into a folder: what lies in numba's cache is run."""
    try:
        status = folder.stat()
    except OSError:
        return False
    if not hasattr(os, "geteuid"):  # Windows keeps others out of a user's folders by itself
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & stat.S_IWOTH


@contextmanager
def _alone(note: Path, text: str) -> Iterator[None]:
    """Lets one process in at a time until ``note`` says ``text``, which the first to leave writes."""
    file = _locked(note, text)
    if file is None:
        yield
        return
    with file:
        yield
        file.truncate(0)
        file.write(text)


def _locked(note: Path, text: str) -> IO[str] | None:
    """The note, locked until it is closed; None where it says ``text`` already, and where files cannot be locked or written."""
    try:
        import fcntl

        if note.exists() and note.read_text() == text:
            return None
        note.parent.mkdir(parents=True, exist_ok=True)
        file = note.open("a+")
    except (ImportError, OSError):
        return None
    with suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _WAITING.set()
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            finally:
                _WAITING.clear()
        file.seek(0)
        if file.read() != text:
            return file
    file.close()
    return None
