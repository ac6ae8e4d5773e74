"""What the program is delivered with: versions that have bounds, licences that are known, compiled code that nobody else wrote."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rapid_dse.common.compiled import is_own

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import supply  # noqa: E402 benchmarks are no package


def test_every_dependency_is_bounded_and_the_lock_is_within() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [
        *project["project"]["dependencies"],
        *(each for extra in project["project"]["optional-dependencies"].values() for each in extra),
    ]
    needs = [Requirement(text) for text in listed if not text.startswith("rapid-dse")]
    assert not [str(need) for need in needs if not any(each.operator in ("<", "==", "<=") for each in need.specifier)]
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line and line[0] != "#")
    pinned = {name.lower(): version.split()[0] for name, version in locked.items()}
    assert not [str(need) for need in needs if need.name.lower() in pinned and pinned[need.name.lower()] not in need.specifier]
    assert {need.name.lower() for need in map(Requirement, project["project"]["dependencies"])} <= pinned.keys()


def test_the_list_of_packages_names_each_with_a_licence() -> None:
    found = supply.components()
    names = {each.name for each in found}
    assert {"numpy", "hydra-core", "optuna", "pyarrow", "sqlalchemy"} <= names, "with what those need"
    assert not [each.name for each in found if each.licence == "unknown"]
    assert not [each for each in found if "GPL" in each.licence.upper()]
    document = supply.sbom(found)
    refs = {each["bom-ref"] for each in document["components"]} | {document["metadata"]["component"]["bom-ref"]}
    assert len(refs) == len(found)
    assert all(need in refs for each in document["dependencies"] for need in each["dependsOn"])


FINE: dict[str, object] = {"name": "a", "version": "1", "vulns": []}
WEAK = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"], "aliases": [], "description": ""}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


def _said(packages: list[dict[str, object]]) -> str:
    """A shell command that prints what ``pip-audit --format=json`` says of the packages."""
    return f"echo '{json.dumps({'dependencies': packages, 'fixes': []})}'"


@pytest.mark.parametrize(
    ("answer", "said", "weak"),
    [
        (None, "no audit: pip-audit is not installed", False),
        (_said([FINE, FINE]), "pip-audit: 2 packages asked for, 0 with known weaknesses", False),
        (_said([FINE, WEAK]) + "; exit 1", "pip-audit: 2 packages asked for, 1 with known weaknesses\nb 2: X-1; mended in 3", True),
        (_said([FINE, SKIPPED]), "pip-audit: 1 packages asked for, 0 with known weaknesses\nnot asked for: c", False),
        (_said([SKIPPED]), "no audit: the service that pip-audit asks, as a mirror of PyPI, knows none of the 1 packages", False),
        ("echo 'ConnectionError: no route' >&2; exit 1", "no audit: pip-audit failed, as where it does not reach its service (Conn", False),
        ("echo '[]'; exit 1", "no audit: pip-audit failed", False),
        ("sleep 9", "no audit: pip-audit has no answer", False),
    ],
)
def test_an_audit_says_what_it_found_or_why_there_is_none(
    answer: str | None, said: str, weak: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(supply, "AUDIT_SECONDS", 0.5)
    monkeypatch.setattr(supply, "_PLACES", ())
    if answer is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        program = tmp_path / "pip-audit"
        program.write_text(f"#!/bin/sh\n{answer}\n")
        program.chmod(0o755)
    found, known = supply.audit()
    assert found.startswith(said)
    assert known == weak


def test_compiled_code_that_others_could_have_written_is_not_loaded(tmp_path: Path) -> None:
    assert is_own(tmp_path)
    tmp_path.chmod(0o777)
    assert not is_own(tmp_path)
    tmp_path.chmod(0o755)
    assert not is_own(tmp_path / "not there")
