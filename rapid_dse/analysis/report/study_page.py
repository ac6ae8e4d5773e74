"""The page: what its sections are filled with, and the template around them."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rapid_dse.analysis.report.packed_rows import packed_rows
from rapid_dse.analysis.report.pipeline_section import pipeline_of
from rapid_dse.analysis.report.study_jobs import ReportJob, Row, Shown, jobs_of
from rapid_dse.analysis.report.study_sections import ReportSection, load_fronts, other_machines, overview, rejected, sections_of
from rapid_dse.analysis.report.svg_charts import printable
from rapid_dse.sweep import figures, ranking, show, store
from rapid_dse.sweep.table import CHOICES

if TYPE_CHECKING:
    import jinja2
    import pyarrow as pa

MOST_JOBS = 6  # jobs that have pictures of their own; of more the best row each is shown


@dataclass(frozen=True)
class Written:
    """Who wrote rows: version, code and time of a file, as its metadata has them, and the configuration behind it (JSON)."""

    version: str
    code: str
    written: str
    configuration: str


@dataclass(frozen=True)
class LaunchText:
    """What launches a row: the text of a file of ``framework`` and what it leaves unsaid; or ``why`` there is none."""

    framework: str
    text: str
    notes: Sequence[str]
    why: str = ""


@dataclass(frozen=True)
class Origin:
    """Where results come from.

    Attributes:
        name: of the study.
        written: who wrote the rows, a file each, the last one last.
        source: the results as commands name them; empty: the page names no commands.
        out: the page as commands name it.
    """

    name: str
    written: Sequence[Written] = ()
    source: str = ""
    out: str = "report.html"


def page(table: pa.Table, origin: Origin, by: str = "step_time_s", sensitivity: bool = True) -> str:
    """The report of a table of results as HTML.

    Args:
        table: as ``result_columns.require_results`` gives it.
        by: the column that ranks; a leading '-' puts the largest first.
        sensitivity: whether rows are priced again on other machines; of several jobs they are not.

    Raises:
        ValueError: where no row was priced, or no column of numbers has the name ``by``.
    """
    jobs = jobs_of(table, by)
    status, reasons = ranking.counts(table)
    parts = [
        {
            "job": job,
            "card": card_of(job.pictured[0]),
            "launch": launch_of(job.pictured[0]),
            "sections": [*sections_of(job, f"job{at}"), *pipeline_of(job.pictured[0], f"job{at}")],
        }
        for at, job in enumerate(jobs[:MOST_JOBS])
    ]
    written, key = origin.written, str(jobs[0].pictured[0].row.get("key") or "")
    return _template().render(
        name=printable(origin.name),
        parts=parts,
        overview=overview(jobs) if len(jobs) > 1 else None,
        loads=_loads(table, jobs),
        left_out=max(0, len(jobs) - MOST_JOBS),
        rejected=rejected(dict(status), dict(reasons.most_common())),
        provenance=_provenance(written),
        configuration=_indented(written[-1].configuration) if written else "",
        commands=commands_of(origin, by, key) if origin.source else [],
        machines=other_machines(jobs[0]) if sensitivity and len(jobs) == 1 else None,
        packed=packed_rows(table, by),
        style=_file("report.css") + _file("browser/uPlot.min.css"),
        scripts=_scripts(),
        hashes=[f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in _scripts()],
    )


def _loads(table: pa.Table, jobs: Sequence[ReportJob]) -> list[ReportSection]:
    """The front of throughput and time of a token, where requests under several loads were ranked load by load."""
    if len(jobs) < 2 or not any(job.serving for job in jobs):
        return []
    together = jobs_of(table, "tokens_per_s_per_gpu")
    return load_fronts([job for job in together if job.fits and job.serving][:MOST_JOBS]) if len(together) < len(jobs) else []


def written_of(source: Path) -> list[Written]:
    """Who wrote the result files behind a path; a file without such metadata is left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sections = []
    for path in store.files_of(source):
        if path.suffix.lower() != store.SUFFIX:
            continue
        try:
            metadata = pq.read_schema(path).metadata or {}
        except (pa.ArrowException, OSError):
            continue  # store.read has said so
        if store.CODE in metadata:
            texts = (
                metadata.get(key, b"").decode(errors="replace") for key in (store.VERSION, store.CODE, store.WRITTEN, store.CONFIGURATION)
            )
            sections.append(Written(*texts))
    return sorted(sections, key=lambda section: section.written)


def commands_of(origin: Origin, by: str, key: str) -> list[str]:
    """Commands that write this page again and show more of the study."""
    ranks = [] if by == "step_time_s" else [f"--by={by}"]
    source = origin.source
    said = [["report", source, "--out", origin.out, *ranks], ["rank", source, *ranks]]
    said += [["explain", source, "--key", key], ["export", source, "--key", key]] if key else []
    return [f"python -m rapid_dse.{shlex.join(line)}" for line in said]


def card_of(row_of_job: Shown) -> list[tuple[str, str]]:
    """What the answer is: names and values."""
    row, usable = row_of_job.row, row_of_job.usable
    of = "" if usable is None else f" of {figures.size(usable)} usable"
    time, rate = ("a token", "requests") if row_of_job.serving else ("step time", "tokens")
    facts = [
        ("which row", row_of_job.role),
        ("layout", show.layout_text(row)),
        ("on", ", ".join(f"{key}={row[key]}" for key in CHOICES if row.get(key))),
        ("GPUs", figures.result("hw.num_gpus", row.get("hw.num_gpus"))),
        (time, f"{figures.seconds(row['step_time_s'])} {show.expected_text(show.error_of(row))}"),
        ("± of a token" if row_of_job.serving else "±", _why(row)),
        (rate, figures.result("requests_per_s", row.get("requests_per_s")).replace("tokens", "requests") if row_of_job.serving
         else figures.rate(row.get("tokens_per_s"))),
        ("MFU", figures.percent(row.get("mfu"))),
        ("memory of a GPU", figures.size(row.get("peak_memory_bytes")) + of),
        ("cost of a request" if row_of_job.serving else "cost of a step", figures.dollars(row.get("cost_usd"))),
    ]  # fmt: skip
    for key, title in (("ttft_s", "first token"), ("usd_per_million_tokens", "cost of a million tokens"), ("train_time_s", "the run"),
                       ("train_cost_usd", "cost of the run"), ("goodput", "goodput")):  # fmt: skip
        if row.get(key) is not None:
            facts.append((title, show.first_token_text(row) if key == "ttft_s" else figures.result(key, row[key])))
    return facts + ([("key", str(row["key"]))] if row.get("key") else [])


def _why(row: Row) -> str:
    if row.get("outside"):
        return f"outside: {row['outside']}"
    return "nothing alike was measured" if show.error_of(row) is None else "all settings lie inside what was measured"


def launch_of(row: Shown) -> LaunchText:
    """What launches a row, by its own framework."""
    from rapid_dse.analysis.launch_files.exported import exported
    from rapid_dse.analysis.launch_files.frameworks import of_profile

    if row.portion is None:
        return LaunchText("", "", (), "The row cannot be composed here: its hw, model, software or cluster is not in conf/.")
    software = row.portion.choices["software"]
    framework = of_profile(software)
    if framework is None:
        return LaunchText("", "", (), f"software={software} has no launch files of its own.")
    try:
        launch_file = exported(row.portion, framework)
    except ValueError as error:
        return LaunchText("", "", (), f"{framework.title}: {error}")
    return LaunchText(framework.title, launch_file.text, launch_file.notes)


def _provenance(written: Sequence[Written]) -> ReportSection:
    """Files by version and code, with the time of the first and the last."""
    rows = []
    for (version, code), files in itertools.groupby(
        sorted(written, key=lambda file: (file.version, file.code)), lambda file: (file.version, file.code)
    ):
        times = sorted(file.written for file in files)
        rows.append([version, code, str(len(times)), times[0], times[-1]])
    note = "" if rows else "These rows do not say who wrote them."
    return ReportSection("Provenance", note, None, ["rapid_dse", "code", "files", "first written", "last written"], rows)


def _indented(text: str) -> str:
    """JSON with a key a line; as it is where it is none."""
    try:
        return json.dumps(json.loads(text), indent=1)
    except ValueError:
        return text


@cache
def _template() -> jinja2.Template:
    return environment_of(__package__).get_template("report.html.j2")


def environment_of(*packages: str) -> jinja2.Environment:
    """Templates that lie beside the modules of packages, which escape every text."""
    import jinja2

    loader = jinja2.FunctionLoader(lambda name: next((text for package in packages if (text := _text_in(package, name)) is not None), None))
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _text_in(package: str, name: str) -> str | None:
    file = resources.files(package).joinpath(name)
    return file.read_text(encoding="utf-8") if file.is_file() else None


@cache
def _scripts() -> tuple[str, ...]:
    """The page's scripts, which its content-security policy names by their digests: no other text is run."""
    return tuple(_file(f"browser/{name}.js") for name in ("uPlot.iife.min", "cloud", "pictures", "all_rows"))


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
