"""``python -m rapid_dse.import_model FILE``: a Hugging Face config.json, or RAPID-LLM's model or hardware YAML, into ``conf/``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapid_dse.command import Parser, guarded

if TYPE_CHECKING:
    from rapid_dse.imports.reader import Imported

EPILOG = """\
FILE is a Hugging Face config.json, or RAPID-LLM's model (model_param) or hardware (tech_param) YAML. It is written to
conf/model/NAME.yaml or conf/hw/NAME.yaml below the current folder, and composes as model=NAME or hw=NAME. Without importing,
model=./config.json and hw=./its_hardware.yaml take the file itself. Each key of the file is listed: what it became, or why nothing
was made of it.
"""


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Does what the command line says.

    Raises:
        ValueError: one line: a file that is none of these, a kind of layer that is not modelled, a name that is taken.
    """
    parser = Parser(prog="python -m rapid_dse.import_model", description=__doc__, epilog=EPILOG)
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to import")
    parser.add_argument("--out", metavar="NAME", help="name of the option (default: as the file, or its folder, is called)")
    parser.add_argument("--force", action="store_true", help="replace an option of that name in conf/ below the current folder")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/json.md) in place of text")
    options = parser.parse_args(arguments)
    if options.out is not None and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", options.out) is None:
        raise ValueError(f"--out {options.out}: allowed: the name of an option, letters, digits, _, - and . alone")
    from rapid_dse.imports.file_options import read_foreign
    from rapid_dse.sweep.places import home

    imported = read_foreign(options.file, home())
    _check(imported, options.file)
    name = options.out or str(imported.option["name"])
    figures = _figures(imported, name)
    written = None if options.dry_run else _write(imported, name, options)
    report = {
        "group": imported.group,
        "option": name,
        "kind": imported.kind,
        "file": None if written is None else str(written),
        "content": _content(imported, name),
        "taken": dict(imported.taken),
        "left": dict(imported.not_taken),
        "remarks": list(imported.remarks),
        "model": figures,
    }
    if options.json:
        print(json.dumps(report))
    else:
        _show(report)
    return 0


def _check(imported: Imported, file: Path) -> None:
    """``ValueError`` where the file's values are none that the schema takes."""
    from rapid_dse.sweep.compose import composed, hydra_ready, scenario_of

    with hydra_ready():
        scenario_of(composed({imported.group: str(file if "/" in str(file) else f"./{file}")}).tree)


def _figures(imported: Imported, name: str) -> dict[str, Any] | None:
    """Those of a model; ``ValueError`` where the option is none that the schema takes."""
    from dataclasses import asdict

    from rapid_dse.imports.checked import checked_model

    if imported.group != "model":
        return None
    from rapid_dse.analysis.model_card import card

    return asdict(card(checked_model({**imported.option, "name": name})))


def _write(imported: Imported, name: str, options: argparse.Namespace) -> Path:
    import yaml

    path = Path("conf") / imported.group / f"{name}.yaml"
    if path.exists() and not options.force:
        raise ValueError(f"{path}: is there already; allowed: --out with another name, or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = "".join(f"# {remark}\n" for remark in imported.remarks)
    content = yaml.safe_dump(_content(imported, name), sort_keys=False, allow_unicode=True, width=140)
    path.write_text(f"# {imported.kind}, imported from {options.file.name}\n{notes}{content}", encoding="utf-8")
    return path


def _content(imported: Imported, name: str) -> dict[str, Any]:
    """The option, without the remarks: what is written is the user's own from now on."""
    from rapid_dse.imports.reader import RUN, SAID

    run = {key: value for key, value in imported.option.get(RUN, {}).items() if key != SAID}
    plain = {key: value for key, value in imported.option.items() if key != RUN}
    return {**plain, "name": name, **({RUN: run} if run else {})}


def _show(report: Mapping[str, Any]) -> None:
    from rapid_dse.sweep import figures

    print(f"{report['kind']}: {report['group']}={report['option']}" + (f", written to {report['file']}" if report["file"] else ""))
    model = report["model"]
    if model:
        active = f", {figures.parameters(model['active_parameters'])} active" if model["active_parameters"] != model["parameters"] else ""
        print(f"{figures.parameters(model['parameters'])} parameters{active}; KV cache {model['kv_bytes_per_token']:,} bytes a token")
    for title, keys in (("taken", report["taken"]), ("not taken", report["left"])):
        if keys:
            print(f"{title}:")
            wide = min(48, max(map(len, keys)))
            for key, text in keys.items():
                print(f"  {key:<{wide}}  {text}")
    for remark in report["remarks"]:
        print(f"note: {remark}")


if __name__ == "__main__":
    sys.exit(main())
