"""What all commands share: one clear line and an exit code in place of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from rapid_dse import termination

USAGE, INTERRUPTED = 2, 130


def guarded(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs ``command``; what the user can mend comes out as one line on stderr.

    SIGTERM and SIGHUP are taken as Ctrl-C is, so that workers and programs that the command has started end with it.

    Returns:
        The command's own exit code; 2 where an input is wrong, too large, or a file cannot be read or written; 130 after Ctrl-C,
        128 and its number after another signal.
    """
    with termination.raising() as came:
        code = _in_one_line(command, arguments)
    return termination.exit_code(came[0]) if came else code


def _in_one_line(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        code = command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished is kept", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return _fail(f"{path}{error.strerror or error}", USAGE)
    except MemoryError as error:
        return _fail(f"not enough memory: {error}", USAGE)
    except ValueError as error:
        return _fail(" ".join(str(error).split()), USAGE)


def _fail(message: str, code: int) -> int:
    print(f"rapid_dse: {message}", file=sys.stderr)
    return code
