"""Rows of the engine's tables as compiled functions reach them: by bare addresses, without bounds checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from rapid_dse.interconnect.records import TABLES, State, run_t

WORD = ir.IntType(64)


def _base(builder: Any, state: Any, place: int) -> Any:
    """Load the address of a table."""
    addresses = builder.inttoptr(state, WORD.as_pointer())
    base = builder.load(builder.gep(addresses, [ir.Constant(WORD, place)]))
    # tables do not move during a run, so the compiler may keep their addresses in registers
    base.set_metadata("invariant.load", builder.module.add_metadata([]))
    return base


def _row_of(table: str) -> Callable[[int, int], Any]:
    """Make the compiled accessor ``row(state, i)`` of a table."""
    place = list(TABLES).index(table)
    record = from_dtype(TABLES[table])
    width = TABLES[table].itemsize

    @intrinsic
    def row(typingctx: Any, state: Any, index: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            address = builder.add(_base(builder, args[0], place), builder.mul(args[1], ir.Constant(WORD, width)))
            return builder.inttoptr(address, context.get_value_type(record))

        return record(types.int64, types.int64), codegen

    return cast(Callable[[int, int], Any], row)


token_at = _row_of("tokens")
slot_at = _row_of("slots")
word_at = _row_of("words")
link_at = _row_of("links")
dim_at = _row_of("dims")
device_at = _row_of("devices")
route_at = _row_of("routes")
message_route_at = _row_of("message_routes")
detour_at = _row_of("detours")
rank_at = _row_of("ranks")
ready_at = _row_of("ready")
queue_at = _row_of("queues")
turn_at = _row_of("turns")
flip_at = _row_of("flips")
node_at = _row_of("nodes")
child_at = _row_of("children")
channel_at = _row_of("channels")
group_at = _row_of("groups")
member_at = _row_of("members")
counter_at = _row_of("counters")
plan_at = _row_of("plans")
phase_at = _row_of("phases")
instance_at = _row_of("instances")
stream_at = _row_of("streams")
endpoint_at = _row_of("endpoints")
halving_at = _row_of("halving")
tree_at = _row_of("trees")
flow_at = _row_of("flows")
path_at = _row_of("paths")


@intrinsic
def _run(typingctx: Any, state: Any) -> Any:
    record = from_dtype(run_t)
    place = list(TABLES).index("run")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(_base(builder, args[0], place), context.get_value_type(record))

    return record(types.int64), codegen


run = cast(Callable[[int], Any], _run)
"""The run's one row."""


class Tables:
    """Owns the arrays of a run; ``state`` is what compiled functions take: the address of their addresses.

    Compiled code reads and writes through bare addresses, without bounds checks: the arrays live as long as this
    object.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, array in arrays.items():
            assert array.dtype == TABLES[name], name
            assert array.flags.c_contiguous, name
        self._arrays = dict(arrays)
        empty = np.zeros(0, np.int8)
        self._addresses = np.array([self._arrays.get(name, empty).ctypes.data for name in TABLES], np.int64)
        self.state: State = int(self._addresses.ctypes.data)

    def __getitem__(self, table: str) -> NDArray[Any]:
        return self._arrays[table]

    def with_tables(self, **arrays: NDArray[Any]) -> Tables:
        """Give the same run with other arrays for some of its tables."""
        return Tables(self._arrays | arrays)
