"""Standard output whose failure names it: an error of the system says which file it is about only where that was opened by name, and would
be blamed on whatever is written beside."""

from __future__ import annotations

import io
import sys
from typing import Any

NAME = "standard output"


class OutputFailedError(OSError):
    """Standard output takes no more, as on a full disk behind a redirection."""


class StandardOutput(io.FileIO):
    """The file behind standard output.

    Attributes:
        failure: the last error of a write, which a library may have passed over (argparse does).
    """

    failure: OutputFailedError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]  # typeshed's does not say that a file which would block takes none
        """As of any file; BrokenPipeError where nobody reads it any more, ``OutputFailedError`` for all else."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            self.failure = OutputFailedError(error.errno, error.strerror or str(error), NAME)
            raise self.failure from None


def named(errors: str) -> StandardOutput | None:
    """Puts such a file behind the process's own ``sys.stdout``; what has no character in its encoding is handled by ``errors``.

    None where another object stands there (a test's, a notebook's), which is left alone.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return None
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if isinstance(raw, StandardOutput):
        return raw
    if stream is not sys.__stdout__ or not isinstance(raw, io.FileIO):
        return None
    stream.flush()
    file = StandardOutput(raw.fileno(), "wb", closefd=False)
    buffer: Any = file if raw is stream.buffer else io.BufferedWriter(file)
    sys.stdout = io.TextIOWrapper(buffer, stream.encoding, errors, line_buffering=stream.line_buffering, write_through=stream.write_through)
    return file
