"""What an event-driven run leaves under ``output/``, where ``backend.artifacts`` asks for it.

``conf/config.yaml`` is where the variables RAPID_* of the environment become these keys.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from rapid_dse.config.scenario import Scenario
from rapid_dse.events import runs

FOLDERS = {
    "analytical": "analytical",
    "hybrid": "astra_hybrid",
    "full_astrasim_hierarchical": "astra_hier",
    "full_astrasim_flattened": "astra_flat",
}


def folder_of(scenario: Scenario, layout: str | None = None) -> Path:
    """Where the artifacts of a backend go, and in it those of a layout: ``output/<mode>/astra_hier/<layout>``, …"""
    return Path("output") / scenario.workload.kind / FOLDERS[scenario.backend.name] / (layout or "")


def keep(scenario: Scenario, done: Mapping[str, runs.Run], layout: str | None) -> None:
    """Writes what is asked for of a layout's runs, each into a folder of its own where there are several.

    Args:
        done: the runs by name.
        layout: a folder of this layout alone, where it is not the only one.

    Raises:
        ValueError: where Chakra traces need a package that is missing; OSError where a file cannot be written.
    """
    wanted = scenario.backend.artifacts
    if not wanted.wanted:
        return
    root = folder_of(scenario, layout)
    for name, run in done.items():
        folder = root if len(done) == 1 else root / name
        folder.mkdir(parents=True, exist_ok=True)
        if wanted.persist:
            _write_inputs(scenario, folder, run)
        if wanted.timeline:
            from rapid_dse.events.timeline import chrome_trace

            (folder / "timeline.json").write_text(json.dumps(chrome_trace(run, name)))
        _write_pictures(folder, run, wanted.graphs, wanted.pictures)


def _write_inputs(scenario: Scenario, folder: Path, run: runs.Run) -> None:
    """ASTRA-sim's input files, and what the run said of its links."""
    from rapid_dse.events.astrasim.files import write_inputs

    for old in folder.glob("*.et"):
        old.unlink()
    shutil.rmtree(folder / "log", ignore_errors=True)
    write_inputs(folder, run.traced.graph, run.topology, runs.system_of(scenario, run.topology))
    lines = ["from,to,bytes,busy_ns"]
    links = run.result.links
    columns = (links.source.tolist(), links.target.tolist(), links.bytes.tolist(), links.busy_ns.tolist())
    lines += [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    (folder / "links.csv").write_text("\n".join(lines) + "\n")


def _write_pictures(folder: Path, run: runs.Run, graphs: bool, pictures: bool) -> None:
    from rapid_dse.events.pictures import graph_picture, run_picture, text_dump
    from rapid_dse.events.timeline import shown_ranks

    ranks = shown_ranks(run.traced, run.result) if graphs or pictures else []
    for rank in ranks:
        if graphs:
            (folder / f"graph.{rank}.svg").write_text(graph_picture(run.traced, rank), encoding="utf-8")
        if pictures:
            (folder / f"trace.{rank}.txt").write_text(text_dump(run.traced, rank), encoding="utf-8")
    if pictures:
        (folder / "run.svg").write_text(run_picture(run.traced, run.result), encoding="utf-8")
