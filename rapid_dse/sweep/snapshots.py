"""Resolved hardware on request: the files under dbg_hw_conf/ say what the best trials ran on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.config.hardware import Hardware
from rapid_dse.sweep import identity, store
from rapid_dse.sweep.chunks import Chunk
from rapid_dse.sweep.portion import Portion

if TYPE_CHECKING:
    import pyarrow as pa

_DEGREES = ("tp", "cp", "dp", "pp")


def write(best: pa.Table, chunks: Sequence[Chunk], root: Path) -> Path:
    """Writes the hardware of the ranked rows, each distinct one with its degrees once, in the order of rank.

    Args:
        best: ranked rows of the result table.
        chunks: where the rows come from.
        root: the folder that holds a folder a sweep.

    Returns:
        the sweep's folder, ``<root>/<YYYYMMDD_HHMMSS>``.

    Raises:
        OSError: where a file cannot be written.
    """
    texts: dict[tuple[str, tuple[int, ...]], None] = {}
    for lanes in store.key_lanes(best["key"]):
        portion, row = find(chunks, lanes)
        degrees = tuple(int(getattr(portion.layouts, name)[row]) for name in _DEGREES)
        resolved = portion.scenario.hw.model_copy(update={"num_gpus": int(portion.layouts.num_gpus[row])})
        texts[hardware_yaml(resolved), degrees] = None
    folder = _new_folder(root)
    for number, (text, (tp, cp, dp, pp)) in enumerate(texts):
        (folder / f"baseline_{number:03d}_tp{tp}_cp{cp}_dp{dp}_lp{pp}.yaml").write_text(text, encoding="utf-8")
    return folder


def hardware_yaml(hardware: Hardware) -> str:
    """A hardware file: every field of the schema, SI values."""
    import yaml

    tree: dict[str, Any] = hardware.model_dump(mode="json")
    text: str = yaml.safe_dump(tree, sort_keys=False)
    return "# Resolved hardware, SI units; a hardware file like those in conf/hw.\n" + text


def find(chunks: Sequence[Chunk], lanes: identity.Lanes) -> tuple[Portion, int]:
    """The portion that holds a key, and the row in it."""
    for chunk in chunks:
        hit = np.flatnonzero((chunk.lanes == lanes).all(axis=1))
        if not len(hit):
            continue
        row = int(hit[0])
        for piece in chunk.pieces:
            if row < len(piece.layouts):
                return piece, row
            row -= len(piece.layouts)
    raise LookupError("a ranked row is of no chunk of this sweep")


def _new_folder(root: Path) -> Path:
    """A folder of this second; two sweeps within one second share it."""
    folder = root / datetime.now().strftime("%Y%m%d_%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
