"""Results from files as a report in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rapid_dse.analysis.report.study_page import Origin, page, written_of
from rapid_dse.sweep import result_columns, store


def write_report(source: Path, out: Path, by: str, sensitivity: bool, report: Callable[[str], None]) -> int:
    """Writes the report of the results behind a path; the bytes of the file. Files that cannot be read are told to ``report``.

    Raises:
        ValueError: where the results or the column is none, or ``out`` cannot be written.
    """
    table = result_columns.require_results(store.read(source, report), source)
    origin = Origin(source.resolve().name, written_of(source), str(source), str(out))
    return write_text(page(table, origin, by, sensitivity), out)


def write_text(text: str, out: Path) -> int:
    """Writes a page aside and moves it into place; the bytes of the file.

    Raises:
        ValueError: where it cannot be written.
    """
    content = text.encode()
    aside = out.with_name(f".{out.name}.part")
    try:
        aside.write_bytes(content)
        aside.replace(out)
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror or error}); allowed: a file in a folder that can be written") from None
    finally:
        aside.unlink(missing_ok=True)
    return len(content)
