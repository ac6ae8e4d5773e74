"""``python -m rapid_dse.advise FILE [--measured 12.3s] [key=value …]``: what is predicted of a run, and what would be better."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rapid_dse.command import Parser, guarded

EPILOG = """\
FILE is a launch file of a framework, what export writes or what people have: a script with Megatron's arguments, a recipe of NeMo,
torchtitan's TOML, DeepSpeed's JSON, nanotron's or LLM Foundry's YAML. What it does not say (the chip, and whatever its framework is told
elsewhere) is given as overrides: hw=h100 hw.num_gpus=64 cluster=eos model=./config.json hw.network.dimensions.1.bandwidth='50 Gb/s'.
They count more than the file.
"""


def main() -> int:
    """Entry point; the exit code."""
    return guarded(run, sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Prints the judgement.

    Raises:
        ValueError: where the file, an override or the measured time is wrong, or what the file asks for cannot run.
    """
    options = _options(arguments)
    from rapid_dse.analysis.launch_files.frameworks import read_file
    from rapid_dse.analysis.launch_files.launched import Composer, launched
    from rapid_dse.analysis.reasons import judgement_text, run_judgement
    from rapid_dse.sweep.console import console

    measured = _seconds(options.measured)
    reading, composer = read_file(options.file, options.framework), Composer()
    try:
        started = launched(reading, options.overrides, composer)
    except ValueError as error:
        raise ValueError(f"{options.file}: {error}") from None
    verdict = run_judgement.judgement(reading, started, measured, composer)
    if options.json:
        print(json.dumps(run_judgement.to_dict(verdict), indent=1))
    else:
        judgement_text.tell_judgement(console(highlight=False), verdict)
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    from rapid_dse.analysis.launch_files.frameworks import FRAMEWORKS

    parser = Parser(prog="python -m rapid_dse.advise", description=__doc__, epilog=EPILOG)
    parser.add_argument("file", type=Path, metavar="FILE", help="a launch file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what the file does not say")
    parser.add_argument("--measured", metavar="TIME", help="what a step takes, as 12.3s or 850 ms")
    parser.add_argument("--framework", metavar="NAME", help=f"whose file it is: {', '.join(FRAMEWORKS)} (default: told from the file)")
    parser.add_argument("--json", action="store_true", help="print JSON (docs/json.md)")
    return parser.parse_intermixed_args(arguments)


def _seconds(text: str | None) -> float | None:
    """A time as people write it.

    Raises:
        ValueError: where it is none, or not above 0.
    """
    from rapid_dse.config.units import to_si

    if text is None:
        return None
    try:
        seconds = float(to_si(text, "s"))
    except ValueError as error:
        raise ValueError(f"--measured={text}: {error}") from None
    if not 0 < seconds < 1e6:
        raise ValueError(f"--measured={text}: allowed: seconds of a step, above 0 and below 1,000,000")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
