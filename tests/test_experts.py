"""Mixtures of experts: who holds which experts, what moves between them, what they cost and hold."""

from __future__ import annotations

from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trials import layouts, legal, priced, scenario

from rapid_dse.config.hardware import Network
from rapid_dse.config.run import Workload
from rapid_dse.events.backends import price
from rapid_dse.events.machine import cluster_of
from rapid_dse.interconnect import closed_form, transfer
from rapid_dse.model.architecture import architecture, matrix_parameters
from rapid_dse.model.parameters import count
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.distinct_parts import distinct_parts, distinct_parts_of_groups
from rapid_dse.parallel.expert_groups import expert_groups
from rapid_dse.parallel.layouts import broken_rules
from rapid_dse.parallel.placement import place
from rapid_dse.parallel.schedules import schedule_of
from rapid_dse.parallel.schedules.schedule import BACKWARD
from rapid_dse.simulate.expert_traffic import alone_share, route
from rapid_dse.simulate.held_weights import layer_weights
from rapid_dse.simulate.host_launches import layer_launches, micro_batch_seconds
from rapid_dse.simulate.layer_memory import layer_activations
from rapid_dse.simulate.slots import host_layer_seconds
from rapid_dse.simulate.training import prepare

ORDER = ("tp", "cp", "ep", "dp", "pp")
MIXTRAL: dict[str, Any] = {"model": "mixtral_8x7b", "workload__seq_len": 4096}


def network(*sizes: int | None, ep_home: int | None = None) -> Network:
    common = {"topology": "switch", "bandwidth": 1e11, "latency": 1e-6, "utilization": 1.0, "energy": 0.0}
    lists = [["ep"] if index == ep_home else None for index in range(len(sizes))]
    return Network.model_validate({"dimensions": [{**common, "size": s, "parallelisms": p} for s, p in zip(sizes, lists, strict=True)]})


class TestGroups:
    def test_by_hand(self) -> None:
        """cp 2, dp 4: ep 4 joins two data-parallel ranks, which are a block; the experts of member 1 are on cp rank 1 of dp 0 and 2."""
        groups = expert_groups({"cp": 2, "dp": 4, "ep": 4}, ORDER, network(8, None))
        assert groups.copy[..., 0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
        assert groups.member[..., 0].tolist() == [[0, 1], [2, 3], [0, 1], [2, 3]]
        assert groups.blocks.tolist() == [[0, 1], [2, 3]]
        exchanging, alike, _ = groups.tables(np.arange(8).reshape(1, 4, 2, 1))
        assert exchanging.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert alike.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]

    def test_outermost_where_the_order_says_so(self) -> None:
        groups = expert_groups({"cp": 1, "dp": 4, "ep": 2}, ("tp", "cp", "dp", "ep", "pp"), network(8, None))
        assert groups.copy.ravel().tolist() == [0, 1, 0, 1]
        assert groups.blocks.tolist() == [[0, 2], [1, 3]]

    def test_groups_that_cross_blocks_join_them(self) -> None:
        """cp 6, ep 4: groups start within one data-parallel rank and end in the next; dp 0 and 1 share all of theirs."""
        groups = expert_groups({"cp": 6, "dp": 4, "ep": 4}, ORDER, network(8, None))
        assert groups.blocks.tolist() == [[0, 1], [2, 3]]

    @given(
        cp=st.sampled_from([1, 2, 3, 4, 6]),
        dp=st.sampled_from([1, 2, 4, 6, 8]),
        tp=st.sampled_from([1, 2]),
        pp=st.sampled_from([1, 2]),
        order=st.sampled_from([ORDER, ("tp", "cp", "dp", "ep", "pp"), ("tp", "cp", "pp", "ep", "dp"), ("ep", "dp", "tp", "cp", "pp")]),
        data=st.data(),
    )
    def test_every_expert_once_a_group_and_groups_alike(
        self, cp: int, dp: int, tp: int, pp: int, order: tuple[str, ...], data: st.DataObject
    ) -> None:
        ranks = tp * cp * dp
        etp = data.draw(st.sampled_from([d for d in range(1, ranks + 1) if ranks % d == 0]))
        ep = data.draw(st.sampled_from([d for d in range(1, ranks // etp + 1) if ranks // etp % d == 0]))
        groups = expert_groups({"tp": tp, "cp": cp, "dp": dp, "ep": ep, "etp": etp}, order, network(8, None))
        places = np.arange(pp * ranks).reshape(pp, dp, cp, tp)
        exchanging, alike, sharing = groups.tables(places)
        assert exchanging.shape == (pp * ranks // ep, ep)
        assert alike.shape == (pp * etp * ep, ranks // etp // ep)
        assert sharing.shape == (pp * ranks // etp, etp)
        for table in (exchanging, alike, sharing):
            assert sorted(table.ravel().tolist()) == list(range(pp * ranks))
        for block in groups.blocks.tolist():
            inside = set(places[:, block].ravel().tolist())
            assert all(set(row) <= inside or not set(row) & inside for row in (*exchanging.tolist(), *sharing.tolist()))

    @given(
        tp=st.sampled_from([1, 2, 4]), cp=st.sampled_from([1, 2]), dp=st.sampled_from([2, 4, 8]), pp=st.sampled_from([1, 2]), data=st.data()
    )
    def test_they_are_megatrons_in_its_order(self, tp: int, cp: int, dp: int, pp: int, data: st.DataObject) -> None:
        """Megatron Core numbers the ranks of a stage by tp, cp, dp, and those of its expert grid by etp, ep and what is left, inner to
        outer (``RankGenerator`` of its parallel_state.py, order tp-cp-ep-dp-pp)."""
        ranks = tp * cp * dp
        etp = data.draw(st.sampled_from([d for d in (1, 2, 4) if tp % d == 0]))
        ep = data.draw(st.sampled_from([d for d in range(1, ranks // etp + 1) if ranks // etp % d == 0]))
        tables = expert_groups({"tp": tp, "cp": cp, "dp": dp, "ep": ep, "etp": etp}, ORDER, network(8, None)).tables(
            np.arange(pp * ranks).reshape(pp, dp, cp, tp)
        )
        grid = np.arange(pp * ranks).reshape(pp, -1, ep, etp)
        for table, axis in zip(tables, (2, 1, 3), strict=True):
            expected = np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis])
            assert sorted(table.tolist()) == sorted(expected.tolist())

    @pytest.mark.parametrize(
        "order", [ORDER, ("tp", "cp", "dp", "ep", "pp"), ("tp", "cp", "pp", "ep", "dp"), ("ep", "dp", "cp", "tp", "pp")]
    )
    def test_they_lie_where_the_closed_forms_place_them(self, order: tuple[str, ...]) -> None:
        """Members by dimension, counted rank by rank on the event engine's places, are the closed forms' spans."""
        machine = network(8, None)
        for tp, cp, dp, pp in product((1, 2), (1, 2, 4), (4, 8), (1, 2)):
            every = [(ep, etp) for ep in (1, 2, 4, cp * dp, tp * cp * dp) for etp in (tp, 1, 4) if tp * cp * dp % (ep * etp) == 0]
            for ep, etp in every:
                degrees = {"tp": tp, "cp": cp, "dp": dp, "pp": pp, "ep": ep, "etp": etp}
                cluster, placed = cluster_of(degrees, order, machine), place(degrees, order, machine)
                tables = expert_groups(degrees, order, machine).tables(cluster.rank)
                for table, span in zip(tables, (placed.ep, placed.expert_gradient, placed.etp), strict=True):
                    nodes = {len(set((row // 8).tolist())) for row in table}
                    assert nodes == {int(span.members[1][0])}, (degrees, order)
                    assert table.shape[1] == int(span.size[0]), (degrees, order)

    def test_on_a_dimension_of_their_own(self) -> None:
        machine = network(4, 8, None, ep_home=0)
        groups = expert_groups({"cp": 2, "dp": 8, "ep": 4}, ORDER, machine)
        assert groups.member[:, 0, 0].tolist() == [0, 1, 2, 3] * 2
        assert (groups.member[:, 0, 0] == groups.member[:, 1, 0]).all()


class TestWork:
    def test_products_by_hand(self) -> None:
        """Mixtral on tp 2, ep 4: 2 of 8 experts a rank, half of each; 2 · 4096 rows of the group's tokens are theirs."""
        of = scenario(**MIXTRAL)
        one = np.array([1])
        shape = MicroBatch(np.array([2]), one, np.array([4]), np.array([2]), one, np.array([True]), 4096)
        products = architecture(of.model).kinds[0].products(shape)
        found = {each.name: tuple(float(np.ravel(x)[0]) for x in (each.m, each.n, each.k, each.batch)) for each in products}
        assert found["router"] == (2048, 8, 4096, 1)
        assert found["expert_up"] == (4096, 2 * 7168, 4096, 2)
        assert found["expert_down"] == (4096, 4096, 7168, 2)

    @pytest.mark.parametrize("changes", [{}, {"ep": 8}, {"tp": 4, "ep": 2}, {"cp": 2, "ep": 4}])
    def test_a_steps_products_are_the_active_parameters(self, changes: dict[str, int]) -> None:
        """All ranks' FLOP forward are 2 a token and active matrix parameter, whatever the layout; a router is on each rank whole."""
        of = scenario(**MIXTRAL | {"model__n_shared_experts": 1})
        ready = prepare(of, legal(of, layouts({"num_gpus": 16, "micro_batch_size": 1, **changes})))
        tokens = 16 * 4096 / (changes.get("tp", 1) * changes.get("cp", 1))
        matmuls = architecture(of.model).kinds[0].products(ready.shape)
        flops = 16 * sum(float(np.ravel(each.flops)[0]) for each in matmuls) * of.model.num_hidden_layers
        head = of.model.hidden_size * of.model.vocab_size
        assert flops == pytest.approx(2 * tokens * (matrix_parameters(of.model) - head), rel=1e-12)

    def test_matrix_parameters_are_the_active_ones(self) -> None:
        for name in ("mixtral_8x7b", "qwen3_30b_a3b"):
            model = scenario(model=name).model
            assert matrix_parameters(model) == pytest.approx(count(model).active - count(model).embedding, rel=1e-3)

    def test_a_mixture_of_one_expert_for_all_tokens_computes_what_a_dense_model_does(self) -> None:
        """Beside the router and what takes tokens to the expert and back."""
        dense = scenario("h100", "llama3_1_8b")
        mixed = scenario("h100", "llama3_1_8b", model__num_experts=1, model__num_experts_per_tok=1, model__moe_intermediate_size=14336)
        layout = layouts({"num_gpus": 8, "global_batch_size": 64})
        a, b = (prepare(of, layout).alone.layers[0] for of in (dense, mixed))
        np.testing.assert_allclose(a.matmul_seconds[:, [0, 1, 2, 3]], b.matmul_seconds[:, [0, 1, 3, 4]])
        assert float(a.attention_forward[0]) == float(b.attention_forward[0])
        assert float(b.glue_forward_bytes[0]) == float(a.glue_forward_bytes[0])
        assert float(b.counted_forward[0]) > float(a.counted_forward[0]) == 0


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model__num_experts_per_tok": 9}, "num_experts_per_tok=9 is above num_experts=8"),
            ({"model__num_experts_per_tok": 0}, "num_experts=8 needs num_experts_per_tok and moe_intermediate_size"),
            ({"model__moe_intermediate_size": 0}, "num_experts=8 needs num_experts_per_tok and moe_intermediate_size"),
        ],
    )
    def test_by_the_schema(self, changes: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            scenario(**MIXTRAL | changes)

    @pytest.mark.parametrize(
        ("changes", "rule"), [({"ep": 3, "dp": 3, "num_gpus": 3}, "num_experts"), ({"ep": 16}, "etp · ep must divide")]
    )
    def test_by_the_rules(self, changes: dict[str, int], rule: str) -> None:
        of, rows = scenario(**MIXTRAL), layouts({"num_gpus": 8, "global_batch_size": 24} | changes)
        found, texts = broken_rules(rows, of)
        assert rule in texts[found[0]]


class TestTraffic:
    def test_all_to_alls_by_hand(self) -> None:
        """Mixtral, ep 8 in a node, one micro-batch of 4,096 tokens: each goes to 2 experts, 8 KiB a row, 7 of 8 leave the GPU, to the
        experts and back, forward and backward; full recomputation sends them forward once more."""
        of = scenario(**MIXTRAL)
        once, again = (
            priced(of, {"num_gpus": 8, "ep": 8, "global_batch_size": 8, "recompute": mode}).time_ep_s[0] for mode in ("selective", "full")
        )
        inner = of.hw.network.dimensions[0]
        flow = 4096 * 2 * 4096 * 2 * 7 / 8 / (inner.bandwidth * inner.utilization)
        latency = 2.6e-6 + 1e-6 + inner.latency + 6 * 0.5e-6
        each = flow + 2 * (0.1e-6 * flow) ** 0.5 + latency
        assert once == pytest.approx(32 * 4 * each, rel=1e-9)
        assert again == pytest.approx(1.5 * once, rel=1e-12)

    def _exchange(self, of: Any, rows: float, group: int) -> float:
        """Seconds of one all-to-all of ``rows`` 8 KiB rows a rank over a group within a node."""
        inner = of.hw.network.dimensions[0]
        flow = rows * 4096 * 2 * (1 - 1 / group) / (inner.bandwidth * inner.utilization)
        return float(flow + 2 * (0.1e-6 * flow) ** 0.5 + 2.6e-6 + 1e-6 + inner.latency + (group - 2) * 0.5e-6)

    def test_folded_experts_by_hand(self) -> None:
        """Mixtral at tp 2 on 8 GPUs, ep 8, etp 1: each GPU has one whole expert, and sends its 2,048 of the tensor-parallel pair's 4,096
        tokens to two experts each; nothing is gathered for the experts. Attention gathers, scatters, and gathers once more backward."""
        of = scenario(**MIXTRAL, software__tp_backward_overlap=0.0)
        row = {"num_gpus": 8, "tp": 2, "ep": 8, "etp": 1, "global_batch_size": 4}
        found, usual = priced(of, row), priced(of, {"num_gpus": 8, "tp": 2, "ep": 4, "global_batch_size": 4})
        assert found.time_ep_s[0] == pytest.approx(32 * 4 * self._exchange(of, 2048 * 2, 8), rel=1e-9)
        pair = place({"tp": 2, "dp": 4}, ORDER, of.hw.network).tp
        rows = float(closed_form.all_gather(2 * 4096 * 4096 * 2, pair, of.hw.network)[0])
        assert usual.time_tp_s[0] - found.time_tp_s[0] == pytest.approx(32 * 4 * rows, rel=1e-9)
        assert found.memory_parameters_bytes[0] == usual.memory_parameters_bytes[0]  # an expert, or halves of two

    def test_experts_that_a_part_of_a_tensor_parallel_group_shares_by_hand(self) -> None:
        """tp 4, etp 2, ep 4 on 8 GPUs: 1,024 tokens a GPU, two rows each, 3 of 4 leave it; pairs gather both ranks' rows and scatter."""
        of = scenario(**MIXTRAL, software__tp_backward_overlap=0.0)
        found, alone = priced(
            of,
            {"num_gpus": 8, "tp": 4, "ep": 4, "etp": 2, "global_batch_size": 2},
            {"num_gpus": 8, "tp": 4, "ep": 8, "etp": 1, "global_batch_size": 2},
        ).time_tp_s
        times = priced(of, {"num_gpus": 8, "tp": 4, "ep": 4, "etp": 2, "global_batch_size": 2})
        assert times.time_ep_s[0] == pytest.approx(32 * 4 * self._exchange(of, 1024 * 2, 4), rel=1e-9)
        pair = place({"tp": 2, "dp": 4}, ORDER, of.hw.network).tp
        rows = float(closed_form.all_gather(2 * 1024 * 2 * 4096 * 2, pair, of.hw.network)[0])
        assert found - alone == pytest.approx(32 * 4 * rows, rel=1e-9)

    def test_copies_of_experts_are_those_of_their_own_grid(self) -> None:
        """Without ZeRO each copy's gradients are summed over tp · cp · dp / (etp · ep) ranks: at ep 4, etp 1 on 8 GPUs there are two
        copies of each expert, whatever tp; ZeRO 1 gives each rank half of its experts' states."""
        of = scenario(**MIXTRAL)
        rows = legal(of, layouts({"num_gpus": 8, "tp": 4, "ep": 4, "etp": 1}))
        (weights,) = layer_weights(of, rows)
        assert rows.expert_copies[0] == 2
        assert weights.experts is not None
        assert weights.experts[0] == 2 * 3 * 4096 * 14336
        tables = 2 * 32256 * 4096 / 4  # padded to 128 · tp
        assert price(of, rows).memory_optimizer_bytes[0] == pytest.approx(
            12 * ((32 * weights.dense[0] + tables) / 2 + 32 * weights.experts[0] / 2), rel=1e-12
        )

    def test_a_group_across_nodes_waits_for_the_fabric(self) -> None:
        of = scenario(**MIXTRAL)
        inside, across = priced(of, {"num_gpus": 64, "ep": 8}, {"num_gpus": 64, "ep": 8, "tp": 2}).time_ep_s
        assert across > 2 * inside  # half the bytes a rank, over a fifth of the bandwidth or less
        faster = of.hw.network.dimensions[1].bandwidth * 2
        wide = scenario(**MIXTRAL | {"hw__network__dimensions__1__bandwidth": faster})
        assert priced(wide, {"num_gpus": 64, "ep": 8, "tp": 2}).time_ep_s[0] < 0.6 * across

    def test_sequence_parallelism_divides_the_rows_that_travel(self) -> None:
        of = scenario(**MIXTRAL)
        split, whole = (priced(of, {"num_gpus": 64, "tp": 4, "ep": 8, "sequence_parallel": sp}).time_ep_s[0] for sp in (True, False))
        assert whole == pytest.approx(4 * split, rel=0.1)

    def test_experts_that_no_other_rank_holds_are_not_reduced(self) -> None:
        """At ep = dp a rank's experts are its own: what is reduced is the dense rest, 1.6 of 46.7 billion parameters."""
        of = scenario(**MIXTRAL, software__dp_overlap=0.0)
        spread, alone = priced(of, {"num_gpus": 8, "ep": 1, "zero": 0}, {"num_gpus": 8, "ep": 8, "zero": 0}).time_dp_s
        dense = 1 - 8 * count(of.model).expert * 32 / count(of.model).total
        assert alone / spread == pytest.approx(dense, rel=0.05)

    def test_routed_rows_are_gathered_and_scattered_over_tp_by_hand(self) -> None:
        """Mixtral, tp 2, one micro-batch: attention gathers, scatters, gathers again for its weight gradient, each of a row a token; the
        experts' rows, two a token, are gathered and scattered, and kept. Without sequence parallelism it is a reduction each.

        Beside the 32 layers the look-up's rows are scattered, what the head reads is gathered, both again backward, and the head's input
        once more; or the sum of the look-up's rows and of the gradient of the head's input. The loss reduces 3 numbers a token. Two norms
        and a router of 8 rows of 4,096 a layer are whole on each rank, which sees half of the tokens: their gradients are summed."""
        of = scenario(**MIXTRAL, software__tp_backward_overlap=0.0)
        split, whole = (
            float(priced(of, {"num_gpus": 8, "tp": 2, "ep": 4, "global_batch_size": 4, "sequence_parallel": sp}).time_tp_s[0])
            for sp in (True, False)
        )
        stream, pair = 4096 * 4096 * 2, place({"tp": 2, "dp": 4}, ORDER, of.hw.network).tp
        one, two = (float(closed_form.all_gather(size, pair, of.hw.network)[0]) for size in (stream, 2 * stream))
        reduce, loss = (float(closed_form.all_reduce(size, pair, of.hw.network)[0]) for size in (stream, 4096 * 4))
        whole_weights = float(closed_form.all_reduce(32 * (2 + 8) * 4096 * 4, pair, of.hw.network)[0])
        assert split == pytest.approx(32 * (2 * (2 * one + 2 * two) + one) + 5 * one + 3 * loss + whole_weights, rel=1e-9)
        assert whole == pytest.approx((32 * 2 * 2 + 2) * reduce + 3 * loss, rel=1e-9)

    def test_ep_one_moves_nothing(self) -> None:
        assert priced(scenario(**MIXTRAL), {"num_gpus": 8}).time_ep_s[0] == 0


class TestDispatchers:
    @pytest.mark.parametrize(("experts", "chosen", "parts"), [(8, 2, 4), (8, 3, 2), (6, 2, 3), (8, 8, 4)])
    def test_parts_that_hold_some_of_a_tokens_experts_counted(self, experts: int, chosen: int, parts: int) -> None:
        every = list(combinations(range(experts), chosen))
        held = [len({each * parts // experts for each in some}) for some in every]
        assert distinct_parts(experts, chosen, parts) == pytest.approx(sum(held) / len(held), rel=1e-12)

    @pytest.mark.parametrize("parts", [1, 2, 4, 8])
    def test_parts_where_experts_lie_in_few_groups_counted(self, parts: int) -> None:
        """8 experts in 4 groups, of which a token has 2: of each pair of groups every choice of 3 experts."""
        held = []
        for groups in combinations(range(4), 2):
            inside = [expert for expert in range(8) if expert // 2 in groups]
            held += [len({each * parts // 8 for each in some}) for some in combinations(inside, 3)]
        assert distinct_parts_of_groups((8, 3, 4, 2), parts) == pytest.approx(sum(held) / len(held), rel=1e-12)

    def test_what_each_carries_by_hand(self) -> None:
        """Qwen3 30B, 4,096 tokens a GPU, 16 GPUs in two nodes: to 8 experts a token each a row; once to each of the 16 GPUs that has one
        of them (of 128 experts 8 on each: 6.50 GPUs on average), and into the other node once where one of 64 is chosen (0.998); or all
        tokens to all."""
        of = {
            name: scenario(model="qwen3_30b_a3b", workload__seq_len=4096, software__dispatcher=name)
            for name in ("alltoall", "deepep", "allgather")
        }
        rows = {name: legal(each, layouts({"num_gpus": 16, "ep": 16})) for name, each in of.items()}
        tokens, group = 4096 * 2048 * 2, place({"dp": 16, "ep": 16}, ORDER, of["deepep"].hw.network).ep
        assert float(np.ravel(route(of["alltoall"], rows["alltoall"], group).size)[0]) == 8 * tokens
        assert float(np.ravel(route(of["allgather"], rows["allgather"], group).size)[0]) == 16 * tokens
        once = route(of["deepep"], rows["deepep"], group)
        assert float(np.ravel(once.size)[0]) == tokens
        assert once.copies is not None
        gpus = 16 * (1 - comb(120, 8) / comb(128, 8))
        nodes = 2 * (1 - comb(64, 8) / comb(128, 8))
        np.testing.assert_allclose(once.copies[:, 0], [gpus, nodes], rtol=1e-12)
        sent = transfer.dispatch(once.size, list(once.copies), group, of["deepep"].hw.network).sent[:, 0]
        np.testing.assert_allclose(sent, [tokens * gpus * 7 / 8, tokens * nodes / 2], rtol=1e-12)

    def test_the_busiest_rank_has_more_rows(self) -> None:
        """At 1.5 times the mean a rank's experts compute, receive and keep half as much again; a rank that has all experts has the mean."""
        runs_ahead = MIXTRAL | {"software__routing_norm": None}
        even, busy, full = (
            scenario(**runs_ahead | changes) for changes in ({}, {"workload__expert_imbalance": 1.5}, {"workload__expert_capacity": 1.5})
        )
        row = {"num_gpus": 8, "ep": 8, "global_batch_size": 8, "recompute": "none"}
        times = [priced(of, row) for of in (even, busy, full)]
        assert times[1].time_ep_s[0] == pytest.approx(1.5 * times[0].time_ep_s[0], rel=0.05)
        assert times[1].time_compute_s[0] > 1.2 * times[0].time_compute_s[0]
        assert times[1].memory_activations_bytes[0] > 1.2 * times[0].memory_activations_bytes[0]
        assert times[1].step_time_s[0] == times[2].step_time_s[0]
        alone = [float(priced(of, {"num_gpus": 8, "global_batch_size": 8}).step_time_s[0]) for of in (even, busy, full)]
        assert alone[0] == alone[1] < alone[2]

    def test_training_is_uneven_unless_it_is_said_to_be_even(self) -> None:
        """The busiest rank has between what Mixtral 8x22B and Olmo-core's 64 experts measured (1.07 and 1.20 times the mean), a rank that
        holds all experts the mean; engines' loads are even."""
        ranks, measured = np.array([1, 8]), (1.07, 1.20)
        alone, spread = Workload().expert_load(ranks)
        assert alone == 1.0
        assert measured[0] <= spread <= measured[1]
        assert Workload(expert_imbalance=1.0).expert_load(ranks).tolist() == [1.0, 1.0]
        assert Workload(kind="inference", prompt_len=8, decode_len=8).expert_load(ranks).tolist() == [1.0, 1.0]

    def test_exchanges_hide_behind_another_micro_batch(self) -> None:
        shown, hidden = (scenario(**MIXTRAL | {"software__expert_overlap": on, "software__ep_overlap": 1.0}) for on in (False, True))
        row = {"num_gpus": 16, "ep": 8, "tp": 2, "global_batch_size": 16}
        assert priced(hidden, row).time_ep_s[0] == pytest.approx(priced(shown, row).time_ep_s[0] / 2, rel=0.05)

    @pytest.mark.parametrize(("pp", "chunks", "micro_batches"), [(1, 1, 1), (1, 1, 8), (4, 1, 8), (2, 4, 6), (4, 2, 2)])
    def test_passes_that_run_alone_are_counted(self, pp: int, chunks: int, micro_batches: int) -> None:
        """Of the last stage's passes, in the order of its schedule, the forward ones before the first backward one."""
        name = "interleaved_1f1b" if chunks > 1 else "1f1b" if pp > 1 else "none"
        row = {"num_gpus": pp, "pp": pp, "vpp": chunks, "schedule": name, "global_batch_size": micro_batches}
        kinds = schedule_of(name).order(pp - 1, pp, chunks, micro_batches)[0].tolist()
        assert alone_share(layouts(row))[0] == pytest.approx(kinds.index(BACKWARD) / (micro_batches * chunks))

    def test_graphs_leave_the_host_out(self) -> None:
        """A tiny mixture of experts waits for launches: all of a step's in one graph, none; those whose shapes are known ahead, less."""
        tiny = {"model__hidden_size": 512, "model__moe_intermediate_size": 512, "model__num_hidden_layers": 8}
        host = {}
        for graphs in ("none", "modules", "full_iteration"):
            of = scenario(**MIXTRAL | tiny, software__cuda_graphs=graphs, software__host_step=0.0)
            host[graphs] = float(priced(of, {"num_gpus": 8, "ep": 8, "global_batch_size": 64}).time_host_s[0])
        assert host["full_iteration"] == 0 < host["modules"] < 0.9 * host["none"]

    @pytest.mark.parametrize("graphs", ["none", "modules", "full_iteration"])
    @pytest.mark.parametrize("capacity", [None, 1.0])
    def test_the_host_waits_for_counts_of_rows(self, graphs: str, capacity: float | None) -> None:
        """It cannot run ahead where each layer's counts come back to it: a slot is longer than the device's and the host's, as three of
        one length are in the third power. Rows of a fixed capacity, and a graph of the whole step, need no counts."""
        settings = {"software__cuda_graphs": graphs, "workload__expert_capacity": capacity, "software__host_step": 0.0}
        of, free = (scenario(**MIXTRAL | settings | norm) for norm in ({}, {"software__routing_norm": None}))
        row = {"num_gpus": 8, "ep": 8, "global_batch_size": 8}
        waits, ahead = priced(of, row), priced(free, row)
        device = float(ahead.step_time_s[0] - ahead.time_optimizer_s[0] - ahead.time_dp_s[0] - ahead.time_host_s[0])
        host = 32 * float(host_layer_seconds(of, layouts(row))[0]) + micro_batch_seconds(of)
        held = capacity is None and graphs != "full_iteration"
        assert host < device
        assert float(ahead.time_host_s[0]) == 0
        assert float(waits.time_host_s[0]) == pytest.approx((device**3 + host**3) ** (1 / 3) - device if held else 0.0, rel=1e-6, abs=1e-9)

    def test_other_cpus_launch_at_their_own_pace(self) -> None:
        """A Grace takes 1.6 times what a DGX H100 does for what profiles say of the latter; those that do not say of whom hold on any."""
        row, chips = layouts({"num_gpus": 8, "ep": 8}), {"h100": 1.0, "a100": 1.4, "gb200": 1.6}
        for told, factor in ((1.0, chips), (2.0, {name: pace / 2 for name, pace in chips.items()}), (None, dict.fromkeys(chips, 1.0))):
            found = {
                name: float(host_layer_seconds(scenario(**MIXTRAL | {"hw": name}, software__host_pace=told), row)[0]) for name in chips
            }
            plain = 24 / 12 * 3.6e-3
            assert found == pytest.approx({name: plain * each for name, each in factor.items()})

    def test_norms_of_queries_and_keys_are_launched_too(self) -> None:
        """Two kernels more than a dense layer's twelve, in a graph with the rest of attention."""
        row = layouts({"num_gpus": 8, "ep": 8})
        for graphs, more in (("none", 2 / 12), ("modules", 0.0), ("full_iteration", 0.0)):
            plain, normed = (scenario(**MIXTRAL, model__qk_norm=norm, software__cuda_graphs=graphs) for norm in (False, True))
            assert float((layer_launches(normed, row) - layer_launches(plain, row))[0]) == pytest.approx(more)


class TestMemory:
    def test_weights_by_hand(self) -> None:
        """tp 2, ep 4, cp·dp 8: attention and router whole or halved, 2 of 8 experts halved; ZeRO 1 shares experts among two ranks."""
        of = scenario(**MIXTRAL)
        rows = legal(of, layouts({"num_gpus": 16, "tp": 2, "ep": 4}))
        (weights,) = layer_weights(of, rows)
        attention = 4096 * (4096 + 1024 + 1024 + 4096) / 2
        assert weights.dense[0] == attention + 2 * 4096 + 4096 * 8
        assert weights.experts is not None
        assert weights.experts[0] == 2 * 3 * 4096 * 14336 / 2
        tables = 2 * 32000 * 4096 / 2
        states = (32 * weights.dense[0] + tables) / 8 + 32 * weights.experts[0] / 2
        assert price(of, rows).memory_optimizer_bytes[0] == pytest.approx(12 * states, rel=1e-12)

    def test_expert_parallelism_divides_the_experts(self) -> None:
        of = scenario(**MIXTRAL)
        one, eight = priced(of, {"num_gpus": 8}, {"num_gpus": 8, "ep": 8}).memory_parameters_bytes
        assert one - eight == 2 * 32 * 7 * 3 * 4096 * 14336

    def test_activations_by_hand(self) -> None:
        """A layer of Mixtral, 4,096 tokens, flash attention, nothing recomputed: in units of a row of 4,096 16-bit elements a token,
        inputs of two norms, of qkv and of the router; q, k, v (1.5) and what attention gives; two rows to the experts and back, their
        gate and up (2 · 2 · 3.5), and what goes down (2 · 3.5); beside them the router's 8 logits and probabilities, and log-sum-exps.
        Where weights multiply what goes down, what comes back is not kept."""
        plain = {"software__activation_overhead": 1.0, "software__fused_rotary": True, "software__fused_activation": True}
        of, within = (scenario(**MIXTRAL, **plain, software__expert_weighting=where) for where in ("output", "activation"))
        row = layouts({"num_gpus": 8, "ep": 8, "recompute": "none"})
        found = float(layer_activations(of, row)[0][0])
        assert found - float(layer_activations(within, row)[0][0]) == pytest.approx(4096 * 2 * 4096 * 2)
        rows = 2 + 2 + 1.5 + 1 + 2 + 2 + 2 * 2 * 3.5 + 2 * 3.5
        by_hand = 4096 * (rows * 4096 * 2 + 8 * 8 + 4 * 32)
        assert found == pytest.approx(by_hand, rel=1e-12)
        drops = scenario(
            **MIXTRAL, **plain, software__expert_weighting="output", model__dropout=True
        )  # two masks more, a byte an element of the stream
        assert float(layer_activations(drops, row)[0][0]) == pytest.approx(by_hand + 2 * 4096 * 4096, rel=1e-12)

    def test_experts_are_gathered_among_the_ranks_that_hold_them(self) -> None:
        of = scenario(**MIXTRAL)
        shared, alone = priced(
            of, {"num_gpus": 16, "ep": 4, "zero": 3}, {"num_gpus": 16, "ep": 8, "dp": 8, "pp": 2, "zero": 3}
        ).memory_gathered_bytes
        assert alone < shared


def test_published_speeds_of_megatron_core_are_near() -> None:
    """Mixtral 8x7B on 128 H100, bf16, 4,096 tokens: 438 TFLOP/s a GPU at tp 1, pp 4, ep 8 with vpp 8 and a batch of 256 (Megatron Core's
    MoE guide, from memory): no fit, a check that the terms are of the right size."""
    of = scenario(**MIXTRAL, hw__num_gpus=128)
    layout = {"num_gpus": 128, "pp": 4, "ep": 8, "vpp": 8, "schedule": "interleaved_1f1b", "global_batch_size": 256}
    found = float(priced(of, layout).mfu[0]) * 989.4
    assert found == pytest.approx(438, rel=0.15)


def test_no_second_of_compute_hides_a_ring_and_an_exchange() -> None:
    """In pairs of passes: a rank's rings and exchanges one after the other are no longer than what it computes and what is exposed."""
    row = {"num_gpus": 128, "pp": 2, "cp": 8, "ep": 8, "dp": 8, "global_batch_size": 64, "recompute": "none"}
    for bandwidth in (50e9, 20e9, 10e9):
        ringing = {"model": "mixtral_8x7b", "workload__seq_len": 32768, "software__overlap_slowdown": 0.0}
        ringing |= {"hw__network__dimensions__0__bandwidth": bandwidth}
        shown = priced(scenario(**ringing, software__cp_overlap=0.0), row | {"schedule": "1f1b"})
        hidden = priced(scenario(**ringing, software__cp_overlap=1.0), row | {"schedule": "dualpipe_v"})
        every = float((shown.time_cp_s + shown.time_ep_s)[0])
        assert hidden.time_ep_s[0] < shown.time_ep_s[0]
        assert hidden.time_cp_s[0] < shown.time_cp_s[0]
        assert float((hidden.time_compute_s + hidden.time_cp_s + hidden.time_ep_s)[0]) >= every * (1 - 1e-9), bandwidth
