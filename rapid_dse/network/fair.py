"""temporary"""

from rapid_dse.network.records import State, compiled, run


@compiled
def join_flows(s: State, i: int, src: int) -> None:
    """x"""
    run(s).overflow = 1
