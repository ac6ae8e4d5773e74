"""What all commands share: one clear line and an exit code in place of a traceback, and output that any terminal and pipe takes."""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rapid_dse import __version__
from rapid_dse.common import collecting, long_work, standard_output, termination

USAGE, INTERRUPTED = 2, 130
_ERRORS = "rapid_dse"  # the name under which Python knows what stands for missing characters
LONGEST = 300  # characters of an error's line, whatever the value in it

# What stands for a character that a terminal's encoding does not have; for all others a question mark.
PLAIN = {"±": "+-", "×": "x", "·": "*", "–": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "→": "->", "µ": "u", "“": '"', "”": '"'}


class _Wrapped(argparse.RawDescriptionHelpFormatter):
    """Descriptions as they stand where the terminal has room for their lines, else each paragraph wrapped to its width."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if all(len(line) <= width for line in text.splitlines()):
            return super()._fill_text(text, width, indent)
        return "\n\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in text.strip("\n").split("\n\n"))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as those of all inputs are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Wrapped, **options)
        self.add_argument("--version", action="version", version=__version__)

    def takes_json(self) -> None:
        """Adds ``--json``: the command then prints one JSON value, whose keys docs/json.md lists, in place of text."""
        self.add_argument("--json", action="store_true", help="print one JSON value (docs/json.md) in place of text")

    def takes_trust(self) -> None:
        """Adds ``--trust``: the table may then set what the command line alone sets else."""
        self.add_argument("--trust", action="store_true", help="the table may choose folders, storages and programs")

    def error(self, message: str) -> NoReturn:
        """Raises ``ValueError``: what is wrong, and the usage."""
        raise ValueError(f"{message}; allowed: {' '.join(self.format_usage().split()[1:])} (see --help)")


def guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs ``command``; what the user can mend comes out as one line on stderr.

    SIGTERM and SIGHUP are taken as Ctrl-C is, so that workers and programs that the command has started end with it. What takes long says
    on stderr how far it has come.

    Returns:
        The command's own exit code; 2 where an input is wrong, too large, or a file cannot be read or written; 130 after Ctrl-C, 128 and
        its number after another signal. A reader of its output that has seen enough (head) ends the command quietly, with 0.
    """
    collecting.once_started()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # those that NumPy starts turn for 0.05 s before they sleep, and have nothing to do
    output = _printable()
    came: list[int] = []
    try:
        with termination.raising() as came, long_work.listening():
            code = _flushed(_in_one_line(command, arguments), output)
    except KeyboardInterrupt:  # came between the command's own end and that of what is around it
        code = INTERRUPTED
    return termination.exit_code(came[0]) if came else code


def _flushed(code: int, output: standard_output.StandardOutput | None) -> int:
    """Writes what is left of the output; the exit code."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_quietly()
    except OSError as error:  # a full disk behind a redirection
        _close_quietly()
        return code or _fail(f"{standard_output.NAME}: {error.strerror or error}", USAGE)
    if not code and output is not None and output.failure is not None:
        return _fail(f"{standard_output.NAME}: {output.failure.strerror}", USAGE)
    return code


def _in_one_line(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return command(arguments)
    except KeyboardInterrupt as error:
        return _fail(f"{termination.what_ended(error)}; what was finished is kept", INTERRUPTED)
    except SystemExit as end:  # what argparse says after --help
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        _close_quietly()
        return 0
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return _fail(f"{path}{error.strerror or error}", USAGE)
    except MemoryError as error:
        return _fail(f"not enough memory: {error}" if str(error) else "not enough memory", USAGE)
    except RecursionError:
        return _fail("an input is nested too deeply", USAGE)
    except ValueError as error:
        return _fail(" ".join(str(error).split()), USAGE)


def _printable() -> standard_output.StandardOutput | None:
    """Lets every character be printed: one that the terminal's encoding lacks has a stand-in; what is closed takes and forgets.

    Standard output's file, where it is the process's own.
    """
    _open_standard_files()
    codecs.register_error(_ERRORS, _stand_in)
    output = standard_output.named(_ERRORS)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    return output


def _open_standard_files() -> None:
    """Opens standard files that the caller has closed: a table's file would get their number, and what a library prints go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def _close_quietly() -> None:
    """Nobody reads standard output any more: what is left in its buffer goes nowhere, at exit too."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and hasattr(stream, "fileno"):
            try:
                os.dup2(null, stream.fileno())
            except (OSError, ValueError):  # none of the system's files
                continue


def one_line(message: str) -> str:
    """A message as a line of at most ``LONGEST`` characters, whose middle is left out where it is longer: its end says what is allowed."""
    line = f"rapid_dse: {message}"
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 123]} … {line[-120:]}"


def _fail(message: str, code: int) -> int:
    try:
        print(one_line(message), file=sys.stderr, flush=True)
    except OSError:  # nobody reads what is wrong either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return code
