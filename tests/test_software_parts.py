"""Software profiles: keys grouped in parts by files, named flat by overrides and rows; a framework of one's own is one short file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import program
import pytest
import yaml
from generated import ROOT, profile

from rapid_dse.analysis.profile_file import profile_lines, with_fitted, without_measured
from rapid_dse.config.parts import group_of, keys_of, parts_of, value_of
from rapid_dse.config.scenario import known_key, unit_of
from rapid_dse.config.software import Software
from rapid_dse.sweep.overrides import read

PROFILES = sorted(path.stem for path in (ROOT / "conf" / "software").glob("*.yaml"))


def test_every_key_has_one_name_and_one_place() -> None:
    grouped = [key for part in parts_of(Software).values() for key in part.model_fields]
    own = [name for name in Software.model_fields if name not in parts_of(Software)]
    assert len({*grouped, *own, *parts_of(Software)}) == len(grouped) + len(own) + len(parts_of(Software))
    assert set(keys_of(Software)) == {*grouped, *own}
    assert all(known_key(f"software.{key}") for key in keys_of(Software))
    assert not any(known_key(f"software.{part}") for part in parts_of(Software))


def test_a_flat_key_counts_before_a_nested_one() -> None:
    software = Software.model_validate({"name": "mine", "kernels": {"attention": "flash", "loss": "fused"}, "attention": "unfused"})
    assert (software.kernels.attention, software.kernels.loss) == ("unfused", "fused")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_dumped_flat_and_read_again(name: str) -> None:
    software = Software.model_validate(profile(name))
    assert set(software.model_dump()) == set(keys_of(Software))
    assert Software.model_validate(software.model_dump(mode="json", exclude_defaults=True)) == software
    dumped = software.model_dump(mode="json", exclude_defaults=True)
    assert Software.model_validate(yaml.safe_load("\n".join(profile_lines(dumped, dict.fromkeys(dumped, "why"))))) == software


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_groups_its_keys_in_parts(name: str) -> None:
    assert not set(profile(name)) & set(group_of(Software))


def test_a_copy_with_other_values_changes_its_parts() -> None:
    software = Software(name="mine")
    changed = software.model_copy(update={"dp_overlap": 0.25, "cp_overlap": 0.5, "enforce": False})
    assert (changed.overlap.dp_overlap, changed.overlap.cp_overlap, changed.enforce) == (0.25, 0.5, False)
    assert value_of(changed, "dp_overlap") == 0.25
    assert software.overlap.dp_overlap == Software(name="other").overlap.dp_overlap


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("software.kernels.attention=flash", "software.kernels.attention: no such key; did you mean 'software.attention'?"),
        ("software.kernels={attention: flash}", "software.kernels: no such key"),
        ("software.atention=flash", "software.atention: no such key; did you mean 'attention'?"),
    ],
)
def test_overrides_name_keys_flat(key: str, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line.replace('?', '.')}"):
        read([key])


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"kernels": {"host_layer": 1}}, "host_layer stands in kernels; expected it in host"),
        ({"kernels": {"loss": "x"}}, "expected one of|'whole', 'in_place', 'fused' or 'chunked'"),
        ({"host": 3}, "host"),
    ],
)
def test_a_wrong_file_is_refused(tree: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Software.model_validate({"name": "mine", **tree})


def test_a_wrong_value_in_a_part_is_named_flat(tmp_path: Path) -> None:
    ended = program.run(tmp_path, "software.loss=x", "hw.num_gpus=8")
    assert ended.code == 2
    assert "software.loss='x': expected one of 'whole', 'in_place', 'fused' or 'chunked'" in ended.err


def test_units_of_grouped_keys() -> None:
    assert (unit_of("software.gradient_bucket"), unit_of("software.host_layer"), unit_of("software.loss")) == ("bytes", "s", None)


FILE = """# mine
name: mine
kernels:
  loss: fused                     # a reason
  elementwise_traffic: 2          # fitted
host:
  host_step: 0.1                  # fitted
# fitted to 3 measured runs
measured:   # by chip
  - {chip: x}
"""


def test_fitted_values_take_the_place_of_earlier_ones() -> None:
    text = with_fitted(FILE, {"elementwise_traffic": 3.0, "dp_overlap": 0.5}, ["# fitted to 4 measured runs", "measured: []"])
    assert yaml.safe_load(text) == {
        "name": "mine",
        "kernels": {"loss": "fused", "elementwise_traffic": 3},
        "overlap": {"dp_overlap": 0.5},
        "measured": [],
    }
    assert "# a reason" in text
    assert "3 measured" not in text
    assert with_fitted(text, {"elementwise_traffic": 3.0, "dp_overlap": 0.5}, ["# fitted to 4 measured runs", "measured: []"]) == text
    assert "measured" not in yaml.safe_load(without_measured(FILE))
