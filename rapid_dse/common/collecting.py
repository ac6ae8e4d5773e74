"""Garbage is collected where there is some: neither while a command starts nor when its process ends, where all that is alive would be
looked through."""

from __future__ import annotations

import atexit
import gc
from typing import Any

STARTED = 250_000  # objects that can hold others; imports and first prices leave up to 200,000 alive


def once_started() -> None:
    """From now on the first collection comes after ``STARTED`` objects, later ones as often as before; none comes at the process's end."""
    usual = gc.get_threshold()
    if usual[0] >= STARTED:
        return

    def collected(phase: str, _: dict[str, Any]) -> None:
        if phase == "stop":
            gc.callbacks.remove(collected)
            gc.set_threshold(*usual)

    atexit.unregister(gc.freeze)  # once, however many commands a process runs
    atexit.register(gc.freeze)  # before the interpreter looks for cycles at its end
    gc.callbacks.append(collected)
    gc.set_threshold(STARTED, *usual[1:])
