"""``python benchmarks/launch_fields.py``: holds the launch files that export writes against the frameworks' own packages.

Downloads each framework's package (pip; not installed, and no GPU is needed), runs the modules that define its options
(``stand_ins.py``), and

* parses files of random layouts, and of layouts with everything special, with those parsers;
* compares the names that it defines with the list that the tests go by (tests/data/launch), which ``--write`` makes anew.

TensorRT-LLM has no such package: its list is that of NVIDIA's aiconfigurator, which writes its options.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import typing
import zipfile
from pathlib import Path

import typing_extensions
from launch_definitions import PACKAGES, Package
from stand_ins import Definitions

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
PUBLISHED = ROOT / "tests" / "data" / "launch"
PLATFORMS = ("manylinux_2_39_x86_64", "manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "any")
OF_SOURCE = ("deepspeed",)  # no wheels


def unpacked(requirement: str, folder: Path) -> None:
    """Downloads a distribution and unpacks its Python sources, where that has not been done."""
    done = folder / f"{requirement}.unpacked"
    if done.exists():
        return
    archives = folder / "archives" / requirement
    archives.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(archives)]
    if requirement.split("==")[0] not in OF_SOURCE:  # whichever Python it is for
        command += ["--only-binary", ":all:", "--python-version", "3.12", *(f"--platform={each}" for each in PLATFORMS)]
    subprocess.run([*command, requirement], check=True)
    (archive,) = archives.iterdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                if name.endswith(".py"):
                    file.extract(name, folder / "packages")
    else:
        with tarfile.open(archive) as file:
            for member in file.getmembers():
                member.name = member.name.partition("/")[2]
                if member.name.endswith(".py") and member.name.startswith(requirement.split("==")[0]):
                    file.extract(member, folder / "packages", filter="data")
    done.touch()


def files_of(name: str) -> list[str]:
    """Launch files of random layouts and of special ones."""
    import test_launch_files as cases

    from rapid_dse.analysis.launch_files.exported import exported

    framework = cases.FRAMEWORKS[name]
    special = [cases.rare(name, overrides) for overrides in cases.SPECIAL.get(name, [])]
    return [exported(row, framework, cases.composer()).text for row in (*cases.rows(name), *special)]


def refused(texts: list[str], parse: typing.Callable[[str], None]) -> list[str]:
    """What the framework's parser says of the files that it refuses."""
    found = []
    for text in texts:
        try:
            parse(text)
        except (ValueError, TypeError) as error:
            found.append(" ".join(str(error).split()))
    return found


def compared(name: str, fields: set[str], source: dict[str, str], write: bool) -> str:
    """How the names differ from the list that the tests go by; with ``write`` the list is made anew, with its source."""
    path = PUBLISHED / f"{name}.json"
    known = json.loads(path.read_text())
    added, gone = sorted(fields - set(known["fields"])), sorted(set(known["fields"]) - fields)
    if write:
        path.write_text(json.dumps({**known, **source, "fields": sorted(fields)}, indent=0) + "\n")
        return f"{len(fields)} names written"
    differ = [f"{word} {', '.join(names)}" for word, names in (("not in the list:", added), ("in the list alone:", gone)) if names]
    return "; ".join([f"{len(fields)} names", *differ])


def source_of(package: Package) -> dict[str, str]:
    """What a list says of where it comes from."""
    asked = " ".join((package.define.__doc__ or "").replace("``", "").split()).split(". ")[0].rstrip(".")
    names = ", ".join(requirement.split("==")[0] for requirement in package.requirements)
    versions = [requirement.split("==")[1] for requirement in package.requirements]
    return {"source": f"{names} on PyPI, by benchmarks/launch_fields.py: {asked}", "version": ", ".join(versions)}


def main() -> int:
    """The exit code: 1 where a file is refused, or a list has other names than its package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="frameworks")
    parser.add_argument("--packages", type=Path, default=ROOT / ".launch", help="folder of what is downloaded")
    parser.add_argument("--write", action="store_true", help="make the lists of names anew")
    options = parser.parse_args()
    named = {name: each for name, each in PACKAGES.items() if not options.only or name in options.only}
    texts = {name: files_of(name) for name in named}  # before anything is a stand-in
    for requirement in dict.fromkeys(text for each in named.values() for text in each.requirements):
        unpacked(requirement, options.packages)
    sys.modules.setdefault("regex", re)
    typing.override = typing_extensions.override  # type: ignore[attr-defined,unused-ignore] of Python 3.12
    sources = options.packages / "packages"
    sys.meta_path.insert(0, Definitions(sources, [module for each in PACKAGES.values() for module in each.real]))
    code = 0
    for name, package in named.items():
        defined = package.define(sources)
        wrong = refused(texts[name], defined.parse)
        told = compared(name, defined.fields, source_of(package), options.write)
        print(f"{name} ({', '.join(package.requirements)}): {len(texts[name]) - len(wrong)} of {len(texts[name])} files taken; {told}")
        for line in dict.fromkeys(wrong):
            print(f"  {line}")
        code |= bool(wrong) or "list:" in told
    return code


if __name__ == "__main__":
    sys.exit(main())
