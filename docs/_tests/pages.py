"""Pages of the documentation as blocks of code, and how these are run: as a reader types them, in an empty folder a page.

A comment before a block says what it is: ``<!-- file: NAME -->``: the block is that file; ``<!-- prints -->``: what the commands before it
print, numbers aside; ``<!-- copy: FILE -->``: the page's reader has that file of ``docs/``. A block behind any other comment is not run:
``<!-- not run: why -->``, or the name of a file that it is a part of.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUN = ("sh", "bash", "python")
WORDS_READ, LETTERS_TYPED = 200, 40 * 5  # of a person, a minute
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block: its language, its text, the comment before it, and the line of the page on which it begins."""

    language: str
    text: str
    mark: str
    line: int


def blocks(page: Path) -> Iterator[CodeBlock]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        yield CodeBlock(found["language"], found["text"], found["mark"] or "", text.count("\n", 0, found.start("language")) + 1)


def runs(block: CodeBlock) -> bool:
    """Whether a reader would type the block."""
    return block.language in RUN and (not block.mark or block.mark.startswith("copy: "))


@dataclass(frozen=True)
class Outcome:
    """How a block ended: exit code, all that it printed, and seconds of CPU."""

    code: int
    out: str
    cpu_seconds: float


def typed(block: CodeBlock, folder: Path) -> Outcome:
    """Runs a block in a folder, with this Python as ``python``."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120", "NO_COLOR": "1"}
    command = [sys.executable, "-c", block.text] if block.language == "python" else ["bash", "-eo", "pipefail", "-c", block.text]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Outcome(ended.returncode, ended.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def minutes_of(page: Path) -> float:
    """Minutes of a person who reads all of a page but its code, and types by hand each command and each file that it has."""
    prose = re.sub(r"<!--.*?-->|^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    by_hand = [block.text for block in blocks(page) if runs(block) or block.mark.startswith("file: ")]
    return len(prose.split()) / WORDS_READ + sum(map(len, by_hand)) / LETTERS_TYPED


def prepare(block: CodeBlock, folder: Path) -> None:
    """Writes or copies the file that a block, or the comment before it, is."""
    kind, _, name = block.mark.partition(": ")
    if kind == "file":
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block.text)
    elif kind == "copy":
        shutil.copy(DOCS / name, folder)


def masked(text: str) -> list[str]:
    """Lines with each number as #, and runs of spaces as one."""
    return [re.sub(r"\d[\d,.]*", "#", " ".join(line.split())) for line in text.splitlines() if line.strip()]
