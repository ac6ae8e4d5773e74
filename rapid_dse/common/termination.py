"""SIGTERM and SIGHUP taken as Ctrl-C is: what is under way is undone on the way out, and programs that were started end too.

By default both end a process at once, and a program that it runs in a session of its own goes on without it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """A signal asked this process to end; its argument is the signal's number."""


def what_ended(error: KeyboardInterrupt) -> str:
    """How a message begins that says why a command ended early: after Ctrl-C, and after another signal."""
    return f"ended by {signal.Signals(error.args[0]).name}" if isinstance(error, Terminated) else "interrupted"


@contextmanager
def raising() -> Iterator[list[int]]:
    """While this is open, SIGTERM and SIGHUP raise ``Terminated``, once; gives a list that then holds the signal's number.

    Signals that are ignored (nohup) or answered otherwise stay as they are, and so do all of them outside the main thread, where
    Python does not set handlers.
    """
    came: list[int] = []

    def unwind(number: int, _: FrameType | None) -> None:
        if not came:  # a second one must not break into what the first one undoes
            came.append(number)
            raise Terminated(number)

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in SIGNALS if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, unwind)
    try:
        yield came
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def unwinding() -> Iterator[None]:
    """While this is open, SIGTERM and SIGHUP unwind what is inside; at its end the process dies of the signal, as it would have at once."""
    came: list[int] = []
    try:
        with raising() as came:
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals that would raise while this is open, Ctrl-C's too, raise at its end: what is inside is done wholly or not at all."""
    came: list[int] = []
    answered = {}
    if threading.current_thread() is threading.main_thread():
        answered = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
    answered = {number: handler for number, handler in answered.items() if callable(handler)}
    for number in answered:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in answered.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def exit_code(number: int) -> int:
    """The exit code by which shells know a process that a signal ended."""
    return 128 + number
