"""Overrides, composition and the space that they span."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose
from omegaconf import OmegaConf
from program import ROOT
from yaml import YAMLError

from hydra_plugins.rapid_dse_plugins._guarded import loaded
from hydra_plugins.rapid_dse_plugins.guarded_folders import GuardedFolders
from rapid_dse.events.backends import price
from rapid_dse.parallel.layouts import CODES, KEYS
from rapid_dse.sweep import by_hydra, grammar, option_files, own_files, places
from rapid_dse.sweep import compose as compose_module
from rapid_dse.sweep.compose import composed, from_hydra, hydra_ready, scenario_of, with_values
from rapid_dse.sweep.overrides import GROUPS, SWEEPS, Values, for_hydra, read, read_space
from rapid_dse.sweep.own_files import all_own
from rapid_dse.sweep.plain_files import NotPlain, option_file
from rapid_dse.sweep.plain_overrides import plain_override
from rapid_dse.sweep.space import plan, single


def test_overrides_are_sorted_and_the_last_of_a_key_counts() -> None:
    given = read(
        ["hw=h100,a100", "parallel.tp=1,2", "parallel.tp=8", "workload.seq_len=range(1,4)", "parallel.pp=all", "hydra.verbose=true"]
    )
    assert given.values == {"parallel.tp": 8}
    assert given.swept == {"hw": Values(("h100", "a100")), "workload.seq_len": Values((1, 2, 3)), "parallel.pp": Values(None)}
    assert given.hydra == ("hydra.verbose=true",)


def test_a_sweep_file_may_write_lists_words_and_ranges() -> None:
    found, paired = read_space({"hw": ["h100"], "parallel.tp": "all", "parallel.pp": "range(1,3)", "parallel.zero": 3})
    assert paired == ()
    assert found == {"hw": Values(("h100",)), "parallel.tp": Values(None), "parallel.pp": Values((1, 2)), "parallel.zero": Values((3,))}


def test_hydra_gets_keys_as_additions_and_all_as_a_choice() -> None:
    assert for_hydra(["hw=a100", "parallel.tp=all", "software.async_tp=true", "sweeps=x"]) == [
        "hw=a100",
        "++parallel.tp=choice(all)",
        "++software.async_tp=true",
        "+sweeps=x",
    ]


def test_values_reach_absent_keys_and_list_entries_and_leave_the_tree_alone() -> None:
    with hydra_ready():
        base = composed({"hw": "h200"})
    values: dict[str, Any] = {
        "software.async_tp": True,
        "hw.network.dimensions.0.bandwidth": "100 GB/s",
        "hw.network.faulty_links": [[0, 1, 0.5]],
        "hw.memory": {"bandwidth": "1 TB/s"},
        "hw.energy.flop.bf16": 1e-12,
    }
    scenario, broken = scenario_of(with_values(base.tree, values))
    assert broken is None
    assert base.choices["hw"] == "h200"
    assert scenario.software.overlap.async_tp
    assert scenario.hw.network.dimensions[0].bandwidth == 100e9
    assert scenario.hw.network.faulty_links == ((0, 1, 0.5),)
    assert scenario.hw.memory.bandwidth == 1e12
    assert scenario_of(base.tree)[0].hw.network.dimensions[0].bandwidth == 450e9


@pytest.mark.parametrize(
    ("hw", "values", "gpus", "sizes", "within"),
    [
        ("h100", {}, 8, [8, None], 1),
        ("h100", {"hw.gpus_per_node": 4}, 4, [4, None], 1),
        ("h100", {"hw.network.dimensions.0.size": 4}, 4, [4, None], 1),
        ("h100", {"hw.network.dimensions.0.size": 4, "hw.gpus_per_node": 4}, 4, [4, None], 1),
        ("gb200", {"hw.gpus_per_node": 36}, 36, [36, None], 1),
        ("a100_pcie", {}, 8, [2, 4, None], 2),  # pairs, and the pairs of a node
        ("a100_pcie", {"hw.gpus_per_node": 4}, 4, [2, 2, None], 2),
        ("a100_pcie", {"hw.gpus_per_node": 2}, 2, [2, 1, None], 1),
        ("a100_pcie", {"hw.network.dimensions.0.size": 4}, 16, [4, 4, None], 2),
        ("h100", {"hw.gpus_per_node": 4, "hw.network.dimensions.0.bandwidth": "200 GB/s"}, 4, [4, None], 1),
    ],
)
def test_the_gpus_of_a_node_and_the_size_of_its_dimensions_are_one_fact(
    hw: str, values: dict[str, Any], gpus: int, sizes: list[int | None], within: int
) -> None:
    with hydra_ready():
        base = composed({"hw": hw})
    scenario, broken = scenario_of(with_values(base.tree, values))
    assert broken is None
    assert scenario.hw.gpus_per_node == gpus
    assert [dimension.size for dimension in scenario.hw.network.dimensions] == sizes
    assert scenario.hw.node_dimensions == within


def test_a_node_in_a_file_of_nodes_and_pods_stays_the_first_dimension() -> None:
    with hydra_ready():
        tree = composed({"hw": "h100"}).tree
    inner, outer = tree["hw"]["network"]["dimensions"]
    pods = with_values(tree, {"hw.network.dimensions": [inner, {**inner, "size": 4}, outer], "hw.gpus_per_node": 8})
    for values, gpus, sizes in (
        ({"hw.network.dimensions.1.size": 2}, 8, [8, 2, None]),
        ({"hw.network.dimensions.0.size": 4}, 4, [4, 4, None]),
        ({"hw.gpus_per_node": 4}, 4, [4, 4, None]),
    ):
        hw = scenario_of(with_values(pods, values))[0].hw
        assert (hw.gpus_per_node, [dimension.size for dimension in hw.network.dimensions]) == (gpus, sizes)


def test_a_node_that_contradicts_its_dimension_is_a_row_with_a_reason() -> None:
    given = ["hw.network.dimensions.0.size=4,8", "hw.gpus_per_node=4"]
    good, bad = plan(read(given)).portions
    assert (good.rule[0], bad.rule[0]) == (-1, 0)
    assert "hw.gpus_per_node=4 and hw.network.dimensions of sizes 8 contradict each other" in bad.reasons[0]
    with hydra_ready():
        tree = composed({"hw": "a100_pcie"}).tree
    with pytest.raises(ValueError, match=r"hw.gpus_per_node=3: inner dimensions hold 2 GPUs"):
        with_values(tree, {"hw.gpus_per_node": 3})


def test_a_smaller_node_takes_tensor_parallelism_across_the_fabric() -> None:
    """tp 8 in nodes of 8, 4 and 2: the ring's slowest link is NVLink (380 GB/s), then 4 network cards (180 GB/s), then 2 (90 GB/s)."""
    found = [price(one.scenario, one.layouts) for one in plan(read(["hw.gpus_per_node=8,4,2", "hw.num_gpus=16", "parallel.tp=8"])).portions]
    inside, four, two = (float(each.time_tp_s[0]) for each in found)
    assert four > 1.5 * inside
    assert two == pytest.approx(2 * four, rel=0.1)


def test_a_sweep_file_sets_the_gpus_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/small.yaml").write_text("# @package _global_\nhw: {gpus_per_node: 4}\nsearch: {space: {parallel.tp: [1, 8]}}\n")
    monkeypatch.chdir(tmp_path)
    (portion,) = plan(read(["+sweeps=small"])).portions
    assert portion.scenario.hw.network.dimensions[0].size == 4
    (portion,) = plan(read(["+sweeps=small", "hw.network.dimensions.0.size=2"])).portions
    assert portion.scenario.hw.gpus_per_node == 2


def layout(*arguments: str) -> dict[str, Any]:
    portion = single(read(arguments))
    found = {name: getattr(portion.layouts, name)[0].item() for name in KEYS}
    return found | {name: CODES[name][found[name]] for name in CODES}


def test_what_was_composed_before_follows_its_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "conf" / "hw" / "mine.yaml"
    mine.parent.mkdir(parents=True)

    def clock_and_graphs() -> tuple[Any, str]:
        with hydra_ready():
            tree = composed({"hw": "mine"}).tree
        seen = tree["hw"]["clock"], str(tree["backend"]["artifacts"]["graphs"]).lower()
        tree["hw"]["clock"] = "the caller's own copy"
        return seen

    mine.write_text("defaults: [h100]\nclock: 1 GHz\n")
    assert clock_and_graphs() == ("1 GHz", "false")
    assert clock_and_graphs() == ("1 GHz", "false")
    mine.write_text("defaults: [h100]\nclock: 1.5 GHz\n")
    assert clock_and_graphs() == ("1.5 GHz", "false")
    monkeypatch.setenv("RAPID_VISUALIZE_GRAPHS", "true")
    assert clock_and_graphs() == ("1.5 GHz", "true")
    mine.unlink()
    with pytest.raises(ValueError, match="no such option"):
        clock_and_graphs()


def test_shipped_options_and_sweeps_are_what_hydra_composes_of_them_together() -> None:
    drawn = random.Random(1)
    named = {group: sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")) for group in GROUPS}
    sweeps = sorted(path.stem for path in (ROOT / SWEEPS).glob("*.yaml"))
    assert min(map(len, [*named.values(), sweeps])) >= 2
    with hydra_ready(), by_hydra.started():
        for sweep in [None, None, *sweeps]:
            options = {group: drawn.choice(some) for group, some in named.items() if group == "backend" or drawn.random() < 0.6}
            options |= {} if sweep is None else {SWEEPS: sweep}
            overrides = [f"{'+' if key == SWEEPS else ''}{key}={value}" for key, value in options.items()]
            together = from_hydra(compose("config", overrides=overrides, return_hydra_config=True), False)
            assert all_own(options)
            found = composed(options)
            assert found == together, options
            assert json.dumps(found.tree) == json.dumps(together.tree), "the order of keys is that of the results' columns"


MODEL = (ROOT / "conf/model/llama3_1_8b.yaml").read_text()
GLOBAL = "# @package _global_\n"
# Files that a user may put among the program's own: some are as plain as those, others say more.
AMONG_OWN = {
    "an option as the program has them": ("conf/model", "defaults: [llama3_1_8b, _self_]\nname: mine\n", True),
    "one that builds on one twice": ("conf/model", "defaults: [llama3_1_8b, llama3_1_8b]\n", False),
    "one that refers to another group": ("conf/model", MODEL.replace("128256", "${hw.num_gpus}"), False),
    "one of another group's package": ("conf/model", "# @package hw\nnum_gpus: 8\n", False),
    "a sweep as the program has them": ("sweeps", GLOBAL + "defaults:\n  - override /hw: h200\nhw: {num_gpus: 16}\n", True),
    "a sweep that builds on a sweep": ("sweeps", GLOBAL + "defaults:\n  - days_and_dollars\nhw: {num_gpus: 16}\n", False),
    "a sweep of no package": ("sweeps", "hw: {num_gpus: 16}\n", False),
    "a sweep that chooses twice": ("sweeps", GLOBAL + "defaults:\n  - override /hw: h200\n  - override /hw: a100\n", False),
    "a sweep that overrides nothing": ("sweeps", GLOBAL + "defaults:\n  - override model: llama3_1_8b\n", False),
    "a sweep that refers to the rest": ("sweeps", GLOBAL + "hw: {num_gpus: '${hw.sms}'}\n", False),
    "a key of no section": ("sweeps", GLOBAL + "hw.num_gpus: 5\n", False),
    "a sweep whose package stands below a comment": ("sweeps", "# 16 GPUs\n" + GLOBAL + "hw: {num_gpus: 16}\n", False),
    "a sweep whose package is a comment": ("sweeps", "#" + GLOBAL + "hw: {num_gpus: 16}\n", False),
    "a sweep whose package stands below what Hydra reads": ("sweeps", "\n" * 600 + GLOBAL + "hw: {num_gpus: 16}\n", False),
    "a sweep that names itself twice": ("sweeps", GLOBAL + "defaults: [_self_, _self_]\nhw: {num_gpus: 16}\n", False),
    "an option of a mebibyte": ("conf/model", MODEL + "#" * (1 << 20) + "\n", False),
    "a section that is nothing": ("sweeps", GLOBAL + "backend: null\n", False),
}


@pytest.fixture(scope="module")
def home_with_more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program's own files with those of ``AMONG_OWN`` among them, named by their number."""
    made = tmp_path_factory.mktemp("home")
    for name in ("conf", "sweeps"):
        shutil.copytree(ROOT / name, made / name)
    for number, (folder, text, _) in enumerate(AMONG_OWN.values()):
        (made / folder / f"mine{number}.yaml").write_text(text)
    return made


@pytest.mark.parametrize("name", AMONG_OWN)
def test_a_file_among_the_programs_own_composes_as_hydra_has_it(home_with_more: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder, text, plain = AMONG_OWN[name]
    for module in (places, compose_module, own_files, option_files, by_hydra):
        monkeypatch.setattr(module, "home", lambda: home_with_more)
    options = {folder.removeprefix("conf/"): f"mine{list(AMONG_OWN).index(name)}"}
    with hydra_ready():
        ended: list[Any] = []
        for compose_it in (composed, lambda options: from_hydra(by_hydra.config_of(options, (), False), False)):
            try:
                ended.append(compose_it(options))
            except ValueError as error:
                ended.append(str(error))
        assert ended[0] == ended[1]
        with contextlib.nullcontext() if plain else pytest.raises(NotPlain):
            own_files.own_tree(options, ("the same files",))
    if "null" in text or ": 5" in text:
        assert "expected keys with values" in str(ended[0])


def test_threads_compose_one_after_another() -> None:
    inside, over = threading.Event(), threading.Event()

    def other() -> Any:
        with hydra_ready():
            inside.set()
            over.wait(10)
            return composed({"model": "llama3_1_8b"})

    with ThreadPoolExecutor(1) as pool:
        with hydra_ready():
            of_other = pool.submit(other)
            inside.wait(0.05)
            own = composed({"model": "llama3_1_8b"})
        over.set()  # Hydra is one for a process: the other's would be gone now, had it been inside as well
        assert of_other.result(10) == own


def test_shipped_options_say_nothing_outside_their_group() -> None:
    for path in (ROOT / "conf").glob("*/**/*.yaml"):
        text = path.read_text()
        assert "${" not in text, path
        assert "@package" not in text, path


def test_defaults_follow_the_degrees() -> None:
    assert layout() | {"dp": 64, "sequence_parallel": False, "schedule": "none", "recompute": "selective", "zero": 1} == layout()
    assert layout("parallel.tp=8", "parallel.pp=2") | {"dp": 4, "sequence_parallel": True, "schedule": "1f1b"} == layout(
        "parallel.tp=8", "parallel.pp=2"
    )
    assert layout("parallel.pp=2", "parallel.vpp=2")["schedule"] == "interleaved_1f1b"
    assert layout("parallel.recompute=none")["recompute"] == "none"
    assert layout("parallel.dp=auto", "hw.num_gpus=8")["dp"] == 8


def test_groups_and_scenario_keys_span_portions_and_layout_keys_span_columns() -> None:
    planned = plan(read(["hw=h100,a100", "workload.seq_len=4096,8192", "parallel.tp=1,2,4", "workload.global_batch_size=512,1024"]))
    assert [(p.choices["hw"], p.scenario.workload.seq_len) for p in planned.portions] == [
        ("h100", 4096),
        ("h100", 8192),
        ("a100", 4096),
        ("a100", 8192),
    ]
    assert all(len(portion.layouts) == 6 for portion in planned.portions)
    assert planned.portions[1].keys == {"workload.seq_len": 8192}


def test_an_automatic_schedule_counts_no_rejections_of_its_own() -> None:
    (portion,) = plan(read(["parallel.vpp=all", "parallel.pp=4"])).portions
    assert portion.layouts.vpp.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [CODES["schedule"][code] for code in portion.layouts.schedule] == ["1f1b"] + ["interleaved_1f1b"] * 7
    assert not portion.rejected


def test_a_rule_between_scenario_keys_is_a_row_in_a_sweep() -> None:
    good, bad = plan(read(["hw=h100,a100", "workload.precision=fp8", "parallel.tp=1,2"])).portions
    assert np.all(good.rule == -1)
    assert bad.rule.tolist() == [0, 0]
    assert "fp8" in bad.reasons[0]


def test_a_named_sweep_names_its_study_and_its_keys() -> None:
    planned = plan(read(["sweeps=llama3_1_405b_16384gpus", "parallel.micro_batch_size=1"]))
    assert planned.search.study == "llama3_1_405b_16384gpus"
    assert [portion.choices["hw"] for portion in planned.portions] == ["h100", "h200", "b200", "b300"]
    assert set(planned.portions[0].layouts.micro_batch_size.tolist()) == {1}


@pytest.mark.parametrize("name", ["llama3_1_405b_16384gpus"])
def test_the_large_sweep_has_a_hundred_thousand_layouts(name: str) -> None:
    planned = plan(read([f"+sweeps={name}"]))
    assert sum(len(portion.layouts) for portion in planned.portions) >= 100_000


@pytest.mark.parametrize("model", ["llama3_1_8b", "mixtral_8x7b"])
def test_the_whole_space_has_every_degree(model: str) -> None:
    with hydra_ready():
        found = plan(read([f"model={model}", "hw.num_gpus=8", "parallel=all"])).portions[0].layouts
    assert set(found.tp.tolist()) == {1, 2, 4, 8}
    assert set(found.expert_tp.tolist()) >= {1, 2, 4, 8}


def test_files_are_read_by_libyaml_as_omegaconf_reads_them(tmp_path: Path) -> None:
    """Numbers, words and dates as OmegaConf's own loader has them; what is wrong is left to that loader to say."""
    odd = tmp_path / "odd.yaml"
    odd.write_text(
        "a: 1e5\nb: 1_000\nc: 2020-01-01\nd: 0x1F\ne: 1:30\nf: .inf\ng: ~\nh: yes\ni: &x {j: [1, '2']}\nk: *x\nl: ${oc.env:HOME}\n"
        "m: [1.5e3, -2E-3, 1e, .5, +7, '1e5', 1_0.5, 1_0e2, 0o7, .5e3, 12e03]\n"
    )
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    for path in (odd, empty, *sorted((ROOT / "conf/software").rglob("*.yaml")), *sorted((ROOT / "sweeps").glob("*.yaml"))[:3]):
        found = loaded(GuardedFolders("test", f"rapid-dse-folder://{path.parent}"), path.name)
        assert found is not None, path
        plain, expected = (OmegaConf.to_container(each, resolve=False) for each in (found.config, OmegaConf.load(path)))
        assert repr(plain) == repr(expected), path
        if path != empty:
            file = option_file(path)
            assert repr({"defaults": list(file.defaults)} | file.content) == repr({"defaults": []} | expected), path
    for text in ("a: 1\na: 2\n", "a: *b\n", "a: [1,\n", "\ta: 1\n", "a: b: c\n"):
        odd.write_text(text)
        assert loaded(GuardedFolders("test", f"rapid-dse-folder://{tmp_path}"), odd.name) is None, text
        with pytest.raises(YAMLError):
            OmegaConf.load(odd)
        with pytest.raises(NotPlain):
            option_file(odd)
    for text in ("", "[1]\n", "1: a\n", "a: ???\n", "a: !!set {b, c}\n", "# @hydra x\na: 1\n"):  # Hydra's to make something of
        odd.write_text(text)
        with pytest.raises(NotPlain):
            option_file(odd)


WORDS = ["a", "tp", "null", "True", "false", "inf", "NaN", "_x", "e5", "GiB", "x-y", "80 GiB", "3.35 TB/s"]
FIGURES = ["1", "0", "08", "-3", "1.5", "-0.25", "1e3", "2.5e-3", ".5", "5.", "1_0"]
SIGNS = ["-", "/", ".", "+", "~", "\\", "$", "é", "'q'", "[1]", "(", ":", " ", ""]


def test_plain_overrides_are_read_as_hydra_reads_them() -> None:
    drawn, seen = random.Random(2), 0
    keys = ["hw", "parallel.tp", "+sweeps", "++a.b.0.c", "a.00", "hydra.verbose", "hydra/x", "~a", "a@b", "a b", "_a1.b_2"]
    for _ in range(2000):
        values = [
            "".join(drawn.choice([*WORDS, *FIGURES, *SIGNS]) for _ in range(drawn.choice((1, 1, 1, 2, 3))))
            for _ in range(drawn.choice((1, 1, 2, 3)))
        ]
        text = f"{drawn.choice(keys)}={','.join(values)}"
        plain = plain_override(text)
        if plain is None:
            continue
        seen += 1
        override = grammar.parser().parse_overrides([text])[0]
        items = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
        assert not override.is_delete()
        assert override.package is None
        assert not override.is_hydra_override()
        assert repr((override.key_or_group, tuple(items))) == repr(plain), text
    assert seen > 150
    assert plain_override("hw.memory.bandwidth=3.35 TB/s") == ("hw.memory.bandwidth", ("3.35 TB/s",))
    assert plain_override("workload.kv_precision=null,fp8") == ("workload.kv_precision", (None, "fp8"))
