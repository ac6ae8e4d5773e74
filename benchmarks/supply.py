"""What this program is delivered with: ``make supply`` writes build/sbom.json (CycloneDX 1.6) of what is installed, lists the licences,
and asks pip-audit for known weaknesses where it is installed and reaches its service.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OWN = "rapid-dse"
AUDIT_SECONDS = 300
_PLACES = (str(ROOT / ".venv-audit" / "bin"),)  # where make supply puts it


@dataclass(frozen=True)
class Component:
    """An installed package, its licence, and which packages it needs."""

    name: str
    version: str
    licence: str
    needs: tuple[str, ...]

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def components(extras: Iterable[str] = ()) -> list[Component]:
    """This program and all that it needs, as installed here; ``extras`` are its own."""
    found: dict[str, Component] = {}
    waiting = [(OWN, frozenset(extras))]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        needs = [(canonicalize_name(each.name), frozenset(each.extras)) for each in _requirements(package, wanted)]
        known = found[name].needs if name in found else ()
        found[name] = Component(name, package.version, licence_of(package), tuple(dict.fromkeys([*known, *(need for need, _ in needs)])))
        waiting += [need for need in needs if need not in seen]
        seen.update(needs)
    return sorted(found.values(), key=lambda each: each.name)


def _requirements(package: Distribution, extras: Iterable[str]) -> list[Requirement]:
    asked = ["", *extras]
    every = map(Requirement, package.requires or ())
    return [each for each in every if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in asked)]


def licence_of(package: Distribution) -> str:
    """What a package says of its licence: the expression, the classifiers, or the first line of a short text."""
    told = package.metadata
    expression = told.get("License-Expression")
    classifiers = [text.rsplit("::", 1)[-1].strip() for text in told.get_all("Classifier") or () if text.startswith("License ::")]
    text = (told.get("License") or "").strip().splitlines()
    return expression or ", ".join(classifiers) or (text[0] if text and len(text[0]) < 60 else "unknown")


def sbom(found: Iterable[Component]) -> dict[str, Any]:
    """The packages as a CycloneDX document."""
    by_name = {each.name: each for each in found}
    own = by_name[OWN]
    others = [each for each in by_name.values() if each is not own]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": own.purl, "name": own.name, "version": own.version}},
        "components": [
            {
                "type": "library",
                "bom-ref": each.purl,
                "name": each.name,
                "version": each.version,
                "purl": each.purl,
                "licenses": [{"license": {"name": each.licence}}],
            }
            for each in others
        ],
        "dependencies": [
            {"ref": each.purl, "dependsOn": [by_name[need].purl for need in each.needs if need in by_name]} for each in by_name.values()
        ],
    }


def audit() -> tuple[str, bool]:
    """What pip-audit says of the versions in requirements.lock, or why it was not asked; and whether it found any weakness."""
    program = shutil.which("pip-audit", path=os.pathsep.join([str(Path(sys.executable).parent), *_PLACES, os.environ.get("PATH", "")]))
    if program is None:
        return "no audit: pip-audit is not installed; where it is, pip-audit -r requirements.lock checks the same versions", False
    command = [program, "--requirement", str(ROOT / "requirements.lock"), "--no-deps", "--format=json", "--progress-spinner=off"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=AUDIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no audit: pip-audit has no answer from its service in {AUDIT_SECONDS} s", False
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = "".join(done.stderr.strip().splitlines()[-1:])[:200]
        return f"no audit: pip-audit failed, as where it does not reach its service ({last})", False
    return _findings(packages)


def _findings(packages: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """What an answer of pip-audit says. It ends with 0 and no weakness, too, where its service knows none of the packages."""
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    weak = [(each, each["vulns"]) for each in packages if each.get("vulns")]
    asked = len(packages) - len(skipped)
    if not asked:
        return f"no audit: the service that pip-audit asks, as a mirror of PyPI, knows none of the {len(skipped)} packages", False
    lines = [f"pip-audit: {asked} packages asked for, {len(weak)} with known weaknesses"]
    for each, known in weak:
        fixed = sorted({version for one in known for version in one.get("fix_versions", ())})
        better = f"; mended in {', '.join(fixed)}" if fixed else ""
        lines.append(f"{each['name']} {each['version']}: {', '.join(one['id'] for one in known)}{better}")
    if skipped:
        lines.append(f"not asked for: {', '.join(skipped)}")
    return "\n".join(lines), bool(weak)


def main() -> int:
    """The exit code: 1 where pip-audit knows a weakness of a version in requirements.lock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sbom.json")
    parser.add_argument("--extras", default="", help="extras of this program, with commas between them")
    options = parser.parse_args()
    found = components(filter(None, options.extras.split(",")))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(sbom(found), indent=1) + "\n")
    for each in found:
        print(f"{each.name:28}{each.version:18}{each.licence}")
    print(f"{len(found)} packages in {options.out}")
    said, weak = audit()
    print(said)
    return int(weak)


if __name__ == "__main__":
    sys.exit(main())
