"""In the place of ASTRA-sim's binary: reads the input files as they were written, runs the event engine, prints what ASTRA-sim prints.

``install`` makes the program that a test names as binary. As with ASTRA-sim's two binaries, which network it runs is its own.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import yaml

from rapid_dse.network.engine import run_graph
from rapid_dse.network.system import SystemSettings
from rapid_dse.network.topology import Topology
from rapid_dse.trace.chakra import read_traces

OPTIONS = {
    "workload-configuration",
    "system-configuration",
    "network-configuration",
    "remote-memory-configuration",
    "comm-group-configuration",
    "logging-folder",
}


def install(folder: Path, network: str = "congestion_aware") -> Path:
    """Writes the program into a folder; each run adds a line to ``calls`` beside it."""
    program = folder / f"astra_{network}"
    command = shlex.join([sys.executable, __file__, network, str(folder / "calls")])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    return program


def main(network: str, calls: str, *arguments: str) -> None:
    """One run, from ASTRA-sim's options to its output."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    assert options.keys() <= OPTIONS, options
    topology = Topology.from_json(yaml.safe_load(Path(options["network-configuration"]).read_text()))
    system = json.loads(Path(options["system-configuration"]).read_text())
    assert json.loads(Path(options["remote-memory-configuration"]).read_text()) == {"memory-type": "NO_MEMORY_EXPANSION"}
    assert system["roofline-enabled"] == system["peak-perf"] == system["trace-enabled"] == 1
    named = options.get("comm-group-configuration")
    groups = {int(name): ranks for name, ranks in json.loads(Path(named).read_text()).items()} if named else {}
    graph = read_traces(Path(options["workload-configuration"]), topology.ranks, groups)
    done = run_graph(graph, topology, SystemSettings.from_json(system), network)
    steps = []
    for i, (start, end) in enumerate(zip(done.start_ns.tolist(), done.end_ns.tolist(), strict=True)):
        who = f"sys->id={graph.rank[i]}, tick={{}}, node->id={graph.id[i]}, node->name=x"
        steps += [f"[workload] [debug] issue,{who.format(start)}", f"[workload] [debug] callback,{who.format(end)}"]
    (Path(options["logging-folder"]) / "log.log").write_text("\n".join(steps) + "\n")
    for rank, finish in enumerate(done.finish_ns.tolist()):
        print(f"sys[{rank}] finished, {finish} cycles, exposed communication 0 cycles.")
    with Path(calls).open("a") as file:
        file.write(f"{topology.ranks} ranks, {len(graph)} nodes\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
