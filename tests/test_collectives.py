"""Rows of measured collectives as networks."""

from __future__ import annotations

import pandas as pd
import pytest

from rapid_dse.analysis.measured_collectives import error_table, fabric_of, predict_collectives, span_of
from rapid_dse.config.hardware import Network
from rapid_dse.interconnect import closed_form as cf

NODE = {
    "topology": "switch",
    "size": 8,
    "bandwidth": 3e11,
    "latency": 1e-6,
    "utilization": 0.8,
    "energy": 0.0,
    "in_network_reduction": True,
}
CARDS = {"topology": "switch", "size": None, "bandwidth": 25e9, "latency": 5e-6, "utilization": 0.9, "energy": 0.0}
NETWORK = Network.model_validate({"dimensions": [NODE, CARDS]})


def table(**columns: object) -> pd.DataFrame:
    row: dict[str, object] = {"hw": "a100", "kind": "all_reduce", "n_gpus": 8, "n_nodes": 1, "interconnect": "NVLink", "size_bytes": 1e9}
    count = max((len(value) for value in columns.values() if isinstance(value, list)), default=1)
    return pd.DataFrame({**row, **columns}, index=range(count))


def test_a_row_is_the_closed_form_of_its_group() -> None:
    rows = pd.concat([table(), table(kind="all_gather", n_gpus=32, n_nodes=4)], ignore_index=True)
    seconds = predict_collectives(rows, {"a100": NETWORK})
    assert seconds[0] == cf.all_reduce(1e9, span_of(NETWORK, 8, 1), NETWORK)
    assert seconds[1] == cf.all_gather(1e9, span_of(NETWORK, 32, 4), NETWORK)
    assert [float(held) for held in span_of(NETWORK, 32, 4).members] == [8, 4]


def test_reduction_in_the_switch_can_be_off() -> None:
    on, off = (
        predict_collectives(table(interconnect=text), {"a100": NETWORK})[0] for text in ("NVSwitch", "NVSwitch (NCCL_NVLS_ENABLE=0)")
    )
    assert off > on


def test_gpus_that_are_idle_leave_their_card_to_the_others() -> None:
    rows = table(interconnect="a100_dgx (across nodes; inter-node link not named)", n_gpus=[2, 8, 16], n_nodes=2, kind="all_gather")
    two, eight, sixteen = predict_collectives(rows, {"a100": NETWORK})
    # A card for each of up to four GPUs a node: what one node sends grows fourfold and then no more.
    assert (two / 0.5) / (eight / 0.875) == pytest.approx(4, rel=0.05)
    assert (sixteen / 0.9375) / (eight / 0.875) == pytest.approx(1, rel=0.05)


def test_errors_by_group() -> None:
    rows = table(n_gpus=[4, 4, 8], **{"measured.time_s": [1.0, 2.0, 4.0]})
    errors = error_table(rows, [1.1, 1.8, 4.0])
    assert errors.loc[("all_reduce", "a100", 4)].round(9).tolist() == [2, 0.1, 0.1, 0.1, 0.0]
    assert errors.loc[("all", "", 0), "mape"] == pytest.approx(0.2 / 3)
    assert list(errors.columns) == ["n", "mape", "median", "p90", "bias"]


def test_the_fabric_is_the_machines_own_where_the_text_says_nothing() -> None:
    assert fabric_of("h200", "NVLink4/NVSwitch") == fabric_of("a100", "")


def test_unknown_chips_and_kinds() -> None:
    with pytest.raises(ValueError, match="hw=b200 has no network; allowed: a100"):
        predict_collectives(table(hw="b200"), {"a100": NETWORK})
    with pytest.raises(ValueError, match=r"kind=gemm; allowed: all_reduce, all_gather"):
        predict_collectives(table(kind="gemm"), {"a100": NETWORK})
