"""Garbage is collected where there is some: neither while a command starts nor when its process ends, where all that is alive would be
looked through."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STARTED = 250_000  # objects that can hold others; imports and first prices leave up to 200,000 alive


@contextmanager
def once_started() -> Iterator[None]:
    """Within, the first collection comes after ``STARTED`` objects, later ones as often as else; none comes at the process's end."""
    usual = gc.get_threshold()

    def collected(phase: str, _: dict[str, Any]) -> None:
        if phase == "stop":
            gc.set_threshold(*usual)

    atexit.unregister(gc.freeze)  # once, however many commands a process runs
    atexit.register(gc.freeze)  # before interpreters look for cycles at their end
    gc.callbacks.append(collected)
    gc.set_threshold(max(STARTED, usual[0]), *usual[1:])
    try:
        yield
    finally:
        gc.callbacks.remove(collected)
        gc.set_threshold(*usual)
