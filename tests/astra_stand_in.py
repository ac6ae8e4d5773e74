"""In the place of ASTRA-sim's binary: reads the input files as they were written, simulates them, prints and logs what ASTRA-sim does.

It simulates by the slow model of ASTRA-sim's rules (reference_network.py), and large graphs by the event engine.
``install`` makes the program that a test names as binary. As with ASTRA-sim's two binaries, which network it runs is its own, and what
upstream's does not do (faulty links, several dimensions where congestion is seen) it does not do either, unless it is told to be a fork.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shlex
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

Json = dict[str, Any]
NodeTimes = dict[str, dict[str, list[int | None]]]

OPTIONS = {
    "workload-configuration",
    "system-configuration",
    "network-configuration",
    "remote-memory-configuration",
    "comm-group-configuration",
    "logging-configuration",
    "logging-folder",
    "num-queues-per-dim",
}
TAGS = 500_000_000
LOST_LINES = 3  # of those that are written behind the program's back, where it dies before they are
KEPT_LOGS = 10
SMALL_NODES, SMALL_RANKS = 300, 16  # what the slow model runs in no time


@dataclass(frozen=True)
class Traits:
    """What a program is like: ``spoils`` names what goes wrong, in all calls but the first ``spares``."""

    network: str = "congestion_aware"
    fork: bool = False
    """Honours faulty links, and runs several dimensions where congestion is seen."""
    dies: bool = False
    """Aborts in its destructors, with lines yet to be written; in 1-D networks with several sub-groups a rank ASTRA-sim does."""
    log_bytes: int = 10 << 20
    """At which a log goes over to a further file."""
    spoils: str = ""
    spares: int = 0


def install(folder: Path, network: str = "congestion_aware", name: str | None = None, **traits: Any) -> Path:
    """Writes the program into a folder; each run adds a line to ``calls`` beside it."""
    program = folder / (name or f"astra_{network}")
    told = json.dumps(asdict(Traits(network=network, **traits)))
    command = shlex.join([sys.executable, __file__, told, str(folder / "calls")])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    return program


def main(told: str, calls: str, *arguments: str) -> int:
    """One run, from ASTRA-sim's options to its output; the exit code."""
    traits = Traits(**json.loads(told))
    before = len(Path(calls).read_text().splitlines()) if Path(calls).exists() else 0
    if before < traits.spares:
        traits = replace(traits, spoils="")
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    assert options.keys() <= OPTIONS, options
    data = read_inputs(options)
    nodes = sum(map(len, data["ranks"].values()))
    with Path(calls).open("a") as file:
        print(f"{len(data['ranks'])} ranks, {nodes} nodes, options {' '.join(arguments)}", file=file)
    if len(data["network"]["topology"]) > 1 and traits.network == "congestion_aware" and not traits.fork:
        print("[Error] (network/analytical/congestion_aware) only one dimension", file=sys.stderr)
        return 255
    if traits.spoils == "sleeps":
        time.sleep(60)
    return tell(simulate(data, traits, nodes), data, options, traits)


def read_inputs(options: dict[str, str]) -> Json:
    """All input files, as one graph in the form of ``tests/data/astrasim/graphs``."""
    import yaml

    assert json.loads(Path(options["remote-memory-configuration"]).read_text()) == {"memory-type": "NO_MEMORY_EXPANSION"}
    network = yaml.safe_load(Path(options["network-configuration"]).read_text())
    network |= {"bandwidth_GBps": network.pop("bandwidth"), "latency_ns": network.pop("latency")}
    system = json.loads(Path(options["system-configuration"]).read_text())
    assert system["roofline-enabled"] == system["peak-perf"] == system["trace-enabled"] == 1
    system["queues-per-dim"] = int(options.get("num-queues-per-dim", "1"))  # the file's entry is not read
    named = options.get("comm-group-configuration")
    groups = json.loads(Path(named).read_text()) if named else {}
    assert all(len(ranks) > 1 for ranks in groups.values()), "hangs"
    traces = {str(rank): read_trace(options["workload-configuration"], rank) for rank in range(math.prod(network["npus_count"]))}
    return {"network": network, "system": system, "comm_groups": groups, "ranks": traces}


def simulate(data: Json, traits: Traits, nodes: int) -> NodeTimes:
    """Starts and ends of nodes. Faulty links count only where the program honours them, a failed one only in several dimensions."""
    aware = traits.network == "congestion_aware"
    several = len(data["network"]["topology"]) > 1
    faults = [fault for fault in data["network"].pop("faulty_links", []) if traits.fork and aware and (fault[2] > 0 or several)]
    data["network"]["faulty_links"] = faults
    if nodes <= SMALL_NODES and len(data["ranks"]) <= SMALL_RANKS:
        import reference_network

        return reference_network.run(data, aware)
    from rapid_dse.events import network_command
    from rapid_dse.trace.graph_file import parse_graph

    graph = parse_graph(data)
    result = network_command.builtin_engine(graph, traits.network)
    times: NodeTimes = network_command.result_to_json(graph.graph, result, links=False)["node_times_ns"]
    return times


def read_trace(prefix: str, rank: int) -> list[Json]:
    """A rank's trace, by a reader of its own."""
    from chakra.schema.protobuf import et_def_pb2 as schema

    messages = frames(Path(f"{prefix}.{rank}.et").read_bytes())
    schema.GlobalMetadata.FromString(next(messages))
    return [read_node(schema, rank, schema.Node.FromString(message)) for message in messages]


def frames(data: bytes) -> Iterator[bytes]:
    """Messages behind their lengths."""
    at = 0
    while at < len(data):
        size = shift = 0
        while True:
            byte = data[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        yield data[at : at + size]
        at += size


def read_node(schema: Any, rank: int, node: Any) -> Json:
    """One node as the program takes it: operations at 1 TFLOP/s, tags modulo 5·10^8."""
    attr = {a.name: getattr(a, a.WhichOneof("value")) for a in node.attr}
    found: Json = {"id": node.id, "deps": [*node.data_deps, *node.ctrl_deps]}
    if node.type == schema.COMP_NODE:
        assert attr["tensor_size"] > 0, "hangs"
        nanoseconds = math.floor(attr["num_ops"] / 1e12 * 1e9)
        assert nanoseconds > 0, "aborts"
        return found | {"type": "comp", "dur_us": nanoseconds / 1000}
    found["size"] = attr["comm_size"]
    if node.type == schema.COMM_COLL_NODE:
        kind = schema.CollectiveCommType.Name(attr["comm_type"])
        return found | {"type": "coll", "coll": kind, "pg": attr.get("pg_name", "")}
    found |= {"src": attr["comm_src"], "dst": attr["comm_dst"], "tag": attr["comm_tag"] % TAGS}
    assert node.type in (schema.COMM_SEND_NODE, schema.COMM_RECV_NODE)
    assert rank == found["src" if node.type == schema.COMM_SEND_NODE else "dst"]
    return found | {"type": "send" if node.type == schema.COMM_SEND_NODE else "recv"}


def tell(times: NodeTimes, data: Json, options: dict[str, str], traits: Traits) -> int:
    """Print and log a run; the exit code, 0 for a deadlock too."""
    events, finished, stuck = [], [], []
    late = int(traits.spoils == "finishes late")
    for rank, nodes in data["ranks"].items():
        ends = []
        for node in nodes:
            start, end = times[rank].get(str(node["id"]), (None, None))
            who = f"sys->id={rank}, tick={{}}, node->id={node['id']}, node->name=x, node->type=1"
            logged = (("issue", start), ("callback", end))
            events += [(at, f"[workload] [debug] {kind},{who.format(at)}") for kind, at in logged if at is not None]
            ends.append(end)
        if None in ends:
            stuck.append(rank)
        else:
            last = max(end for end in ends if end is not None) + late
            finished.append(f"[workload] [info] sys[{rank}] finished, {last} cycles, exposed communication 0 cycles.")
    steps = [line for _, line in sorted(events, key=lambda event: event[0])]
    if traits.spoils == "loses a rank":
        finished = finished[:-1]
    lost = LOST_LINES if traits.dies else 0
    write_rotating(Path(options["logging-folder"]), [*steps, *finished][: -lost or None], traits.log_bytes)
    if "logging-configuration" in options and traits.spoils != "has no log":
        cut = steps[:-1] if traits.spoils == "cuts its log" else steps
        write_synchronous(Path(options["logging-configuration"]), [*cut, *finished])
    print("\n".join(finished[: -lost or None]), flush=True)
    for rank in stuck:
        print(f"[HardwareResource] [critical] !!!Hardware Resource sys.id={rank} has unreleased nodes!!!", file=sys.stderr)
    if traits.dies:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()
    return 3 if traits.spoils == "loses a rank" else 0


def write_rotating(folder: Path, lines: list[str], limit: int) -> None:
    """The log that is written behind the program's back: log.log has the newest lines, log.1.log those before, …"""
    files: list[list[str]] = [[]]
    size = 0
    for line in lines:
        if size + len(line) + 1 > limit:
            files.append([])
            size = 0
        files[-1].append(line)
        size += len(line) + 1
    for number, content in enumerate(reversed(files)):
        if number <= KEPT_LOGS:
            (folder / (f"log.{number}.log" if number else "log.log")).write_text("\n".join(content) + "\n")


def write_synchronous(settings: Path, lines: list[str]) -> None:
    """The log of a logger that is set up in TOML, as spdlog reads it."""
    with settings.open("rb") as file:
        table = tomllib.load(file)
    sinks = {sink["name"]: sink for sink in table["sink"]}
    (logger,) = (one for one in table["logger"] if one["name"] == "workload")
    assert logger["level"] == logger["flush_level"] == "debug"
    for name in logger["sinks"]:
        assert sinks[name]["type"] == "basic_file_sink_mt"
        Path(sinks[name]["filename"]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
