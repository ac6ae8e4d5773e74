"""Chakra execution traces: a graph as ``PREFIX.<rank>.et`` files, written and read with mlc-chakra's schema.

Computation is written for ASTRA-sim's roofline mode at a peak of 1 TFLOP/s, which alone keeps single ns. The program takes
floor(operations / 1e12 · 1e9) ns in doubles: 1000 operations a ns would be 1 ns short at 2 % of all durations (15, 30, 60 …),
so half a ns of operations is added. Needs the optional dependency ``mlc-chakra`` (``pip install rapid-dse[chakra]``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapid_dse.common.bounded_files import require_file
from rapid_dse.trace.graph import COLLECTIVE, COLLECTIVES, COMPUTE, LARGEST, RECEIVE, SEND, WORLD, Graph, GraphBuilder, Ints, is_whole

OPS_PER_NS, HALF_A_NS = 1000, 500
LONGEST_NS = 1 << 50  # up to there rounding, three times by 2^-53, stays below half a ns
MOST_BYTES = 4 << 30  # of a trace; it is read as a whole
TAGS = 500_000_000  # ASTRA-sim takes tags of sends and receives modulo this
SCHEMA_VERSION = "0.0.4"


def load_schema() -> Any:
    """Chakra's messages; ValueError where mlc-chakra is missing."""
    try:
        from chakra.schema.protobuf import et_def_pb2
    except ImportError:
        raise ValueError("Chakra traces need the package mlc-chakra: pip install 'rapid-dse[chakra]'") from None
    return et_def_pb2


def trace_path(prefix: Path, rank: int) -> Path:
    """Name the trace of a rank."""
    return prefix.with_name(f"{prefix.name}.{rank}.et")


def write_traces(graph: Graph, prefix: Path) -> None:
    """Write a file a rank.

    Raises:
        ValueError: mlc-chakra is missing, or a node computes for a time that ASTRA-sim does not keep.
    """
    schema = load_schema()
    lost = (graph.kind == COMPUTE) & ((graph.duration_ns < 1) | (graph.duration_ns >= LONGEST_NS))
    if lost.any():
        i = int(np.flatnonzero(lost)[0])
        raise ValueError(
            f"{graph.node_name(i)} computes for {graph.duration_ns[i]} ns: ASTRA-sim aborts at 0 and does not keep single ns from 2^50 "
            "on; allowed: 1 … 2^50 - 1"
        )
    ptr, tags = graph.rank_ptr, told_apart(graph)
    for rank in range(graph.ranks):
        messages = [schema.GlobalMetadata(version=SCHEMA_VERSION)]
        messages += [_write_node(schema, graph, i, int(tags[i])) for i in range(int(ptr[rank]), int(ptr[rank + 1]))]
        trace_path(prefix, rank).write_bytes(b"".join(_framed(m.SerializeToString()) for m in messages))


def told_apart(graph: Graph) -> Ints:
    """Tags by which ASTRA-sim tells apart all messages that the graph does, int64[nodes]; it takes tags modulo ``TAGS``.

    Tags that are all below that stay as they are; else all are numbered anew, in ascending order.
    """
    pairs = np.flatnonzero(graph.kind >= SEND)
    tags = graph.tag.copy()
    if len(pairs) and not (tags[pairs].min() >= 0 and tags[pairs].max() < TAGS):
        values, tags[pairs] = np.unique(tags[pairs], return_inverse=True)
        assert len(values) <= TAGS, "more messages than memory holds"
    return tags


def _framed(message: bytes) -> bytes:
    """Put the message's length before it, as a varint."""
    size, head = len(message), bytearray()
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + message


def _write_node(schema: Any, graph: Graph, i: int, tag: int) -> Any:
    kind = graph.kind[i]
    node = schema.Node(id=int(graph.id[i]), name=graph.node_name(i))
    node.data_deps.extend(graph.id[graph.deps[graph.deps_ptr[i] : graph.deps_ptr[i + 1]]].tolist())

    def attr(name: str, **value: Any) -> None:
        node.attr.append(schema.AttributeProto(name=name, **value))

    attr("is_cpu_op", bool_val=bool(kind == COMPUTE and graph.stream[i] > 0))
    if kind == COMPUTE:
        node.type = schema.COMP_NODE
        node.duration_micros = int(graph.duration_ns[i]) // 1000
        attr("num_ops", int64_val=int(graph.duration_ns[i]) * OPS_PER_NS + HALF_A_NS)
        attr("tensor_size", uint64_val=1)
        return node
    attr("comm_size", int64_val=int(graph.size[i]))
    if kind == COLLECTIVE:
        node.type = schema.COMM_COLL_NODE
        attr("comm_type", int64_val=schema.CollectiveCommType.Value(COLLECTIVES[graph.collective[i]]))
        if graph.group[i] != WORLD:
            attr("pg_name", string_val=str(graph.groups.ids[graph.group[i]]))
        return node
    own, other = int(graph.rank[i]), int(graph.peer[i])
    src, dst = (other, own) if kind == RECEIVE else (own, other)
    node.type = schema.COMM_RECV_NODE if kind == RECEIVE else schema.COMM_SEND_NODE
    attr("comm_src", int32_val=src)
    attr("comm_dst", int32_val=dst)
    attr("comm_tag", int32_val=tag)
    return node


def read_traces(prefix: Path, ranks: int, groups: Mapping[int, Sequence[int]] | None = None) -> Graph:
    """Read a file a rank; raises ValueError for a missing, cut off or unknown one, and as ``Graph.check`` does."""
    schema = load_schema()
    builder = GraphBuilder(ranks, groups, prefix.name)
    for rank in range(ranks):
        path = trace_path(prefix, rank)
        require_file(path, most=MOST_BYTES)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        frames = _frames(data, path)
        _parse(schema.GlobalMetadata, next(frames, b""), path)
        for frame in frames:
            _read_node(schema, builder, rank, _parse(schema.Node, frame, path))
    return builder.build()


def _parse(message: Any, frame: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError  # comes with mlc-chakra

    try:
        return message.FromString(frame)
    except DecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _frames(data: bytes, path: Path) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size, shift, byte = 0, 0, 0x80
        while at < len(data) and byte >= 0x80:
            byte = data[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
        if byte >= 0x80:
            raise ValueError(f"{path} is cut off: it ends in a message's length")
        if at + size > len(data):
            raise ValueError(f"{path} is cut off: a message of {size} bytes has {len(data) - at} left")
        yield data[at : at + size]
        at += size


def _read_node(schema: Any, builder: GraphBuilder, rank: int, node: Any) -> None:
    attr = {a.name: getattr(a, a.WhichOneof("value")) for a in node.attr if a.WhichOneof("value")}
    deps = [*node.data_deps, *(d for d in node.ctrl_deps if d not in node.data_deps)]
    where = f"node {node.id} of rank {rank}"

    def get(name: str) -> int:
        if name not in attr:
            raise ValueError(f"{where}: it has no attribute {name!r}")
        if not is_whole(attr[name]):
            raise ValueError(f"{where}: its attribute {name!r} is {attr[name]!r}, it must be a whole number and at most 2^53")
        return int(attr[name])

    if node.id > LARGEST:
        raise ValueError(f"{where}: ids must be at most 2^53")
    if node.type == schema.COMP_NODE:
        # as ASTRA-sim computes it at a peak of 1 TFLOP/s
        nanos = int(get("num_ops") / 1e12 * 1e9) if "num_ops" in attr else 0
        builder.compute(rank, node.id, nanos or min(node.duration_micros, LARGEST) * 1000, deps)
    elif node.type == schema.COMM_COLL_NODE:
        group, number = str(attr.get("pg_name", "")), get("comm_type")
        names = {value: name for name, value in schema.CollectiveCommType.items()}
        if group and not group.isdecimal():
            raise ValueError(f"{where}: its pg_name is {group!r}, it must hold a whole number")
        place = None if group in ("", "0") else int(group)
        builder.collective(rank, node.id, names.get(number, str(number)), get("comm_size"), place, deps)
    elif node.type == schema.COMM_SEND_NODE:
        builder.send(rank, node.id, get("comm_dst"), get("comm_size"), get("comm_tag"), deps)
    elif node.type == schema.COMM_RECV_NODE:
        builder.receive(rank, node.id, get("comm_src"), get("comm_size"), get("comm_tag"), deps)
    else:
        raise ValueError(f"{where}: its type {node.type} is none that a simulation runs")
