"""What ``--json`` prints is what docs/json.md says: each command's value is parsed and held to the schema that stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import fastjsonschema
import pandas as pd
import program
import pytest

import rapid_dse as rd
from rapid_dse.analysis.reasons.turning_points import TurningPoint

DOCUMENT = (program.ROOT / "docs" / "json.md").read_text()
SMALL = ("model=llama3_1_8b", "hw.num_gpus=16", "workload.global_batch_size=64")


def with_rows(schema: Any) -> Any:
    """A schema in which ``{"$row": true}`` is the schema of a row."""
    if isinstance(schema, dict):
        return SCHEMAS["row"] if schema == {"$row": True} else {key: with_rows(value) for key, value in schema.items()}
    return [with_rows(each) for each in schema] if isinstance(schema, list) else schema


SCHEMAS: dict[str, Any] = {name: json.loads(text) for name, text in re.findall(r"```json (\w+)\n(.*?)\n```", DOCUMENT, re.DOTALL)}


def check(name: str, text: str) -> Any:
    """The value that a command printed, if it keeps the schema of that name and is all that was printed."""
    value = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    fastjsonschema.validate(with_rows(SCHEMAS[name]), value)
    return value


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a sweep."""
    folder = tmp_path_factory.mktemp("studies")
    ended = program.done(folder, "-m", *SMALL, "parallel.tp=1,2,3,8", "parallel.pp=1,2", "search.study=s", "--json")
    found = check("sweep", ended.out)
    assert found["trials"] == 8
    assert found["status"]["invalid"] == 2
    assert found["best"][0]["step_time_s"] == min(row["step_time_s"] for row in found["best"])
    return folder


def test_every_command_that_takes_json_has_a_schema() -> None:
    takes = {
        path.stem
        for path in (program.ROOT / "rapid_dse").glob("*.py")
        if '"--json"' in path.read_text() or "takes_json()" in path.read_text()
    }
    assert takes - {"command", "command_options"} <= SCHEMAS.keys()


def test_a_trial(tmp_path: Path) -> None:
    row = check("row", program.done(tmp_path, *SMALL, "parallel.tp=2", "--json").out)
    assert row == rd.simulate(model="llama3_1_8b", num_gpus=16, global_batch_size=64, tp=2).to_dict() | {"elapsed_s": row["elapsed_s"]}
    serving = program.done(tmp_path, "workload=inference", "model=llama3_1_8b", "workload.concurrency=8", "workload.prompt_len=512",
                           "workload.decode_len=128", "parallel.tp=1", "hw.num_gpus=1", "--json")  # fmt: skip
    assert check("row", serving.out)["ttft_s"] > 0
    assert "tp must divide" in program.one_line(program.run(tmp_path, *SMALL, "parallel.tp=3", "--json"))


def test_configuration_information_and_version(tmp_path: Path) -> None:
    tree = json.loads(program.done(tmp_path, "--cfg", "job", "--resolve", "--json", "parallel.tp=4").out)
    assert tree["parallel"]["tp"] == 4
    information = json.loads(program.done(tmp_path, "--info", "--json", "hw=h200").out)
    assert information["defaults"]["hw"] == "h200"
    assert "llama3_1_8b" in information["options"]["model"].split()
    assert json.loads(program.done(tmp_path, "--version", "--json").out) == {"version": rd.__version__}


def test_a_search(tmp_path: Path) -> None:
    settings = ("search=optuna", "search.n_trials=4", "search.sampler=random", "parallel.tp=all")
    assert check("sweep", program.done(tmp_path, "-m", *SMALL, *settings, "--json").out)["trials"] == 4


def test_rank(studies: Path) -> None:
    found = check("rank", program.done(studies, "results/s", "--json", "--by", "-mfu", "--top", "3", module="rapid_dse.rank").out)
    assert found["rows"][0]["rank"] == 1
    assert found["rows"][0]["row"]["mfu"] == max(row["row"]["mfu"] for row in found["rows"] if row["rank"])


def test_explain(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = TurningPoint("software.tp_overlap", "both", 0.5, 0.9, 0.8, 0.4)  # to solve one takes seconds
    monkeypatch.setattr("rapid_dse.analysis.reasons.explanation.turning_points", lambda *_: [point])
    check("explain", program.done(studies, "results/s", "--no-sensitivity", "--json", module="rapid_dse.explain").out)


def test_report(studies: Path) -> None:
    found = check("report", program.done(studies, "results/s", "--out", "s.html", "--json", module="rapid_dse.report").out)
    assert found["bytes"] == (studies / found["out"]).stat().st_size


def test_export_and_advise(studies: Path) -> None:
    arguments = ("results/s", "--key", rd.load(studies / "results" / "s").best()[0]["key"], "--to", "megatron_lm")
    found = check("export", program.done(studies, *arguments, "--json", module="rapid_dse.export").out)
    (studies / "run.sh").write_text(found["text"])
    key = rd.load(studies / "results" / "s").best(1, by="cost_usd")[0]["key"]
    told = program.done(studies, "results/s", "--by", "cost_usd", "--out", "cheapest.sh", module="rapid_dse.export").err
    assert told.startswith(f"{key[:12]}: ")
    assert ", the best by cost_usd" in told
    said = program.done(studies, "run.sh", "hw=h100", "hw.num_gpus=16", "--measured", "80 s", "--json", module="rapid_dse.advise").out
    assert check("advise", said)["measured_step_time_s"] == 80


def test_evaluate(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("model,hw.num_gpus,parallel.tp,mine\nllama3_1_8b,8,2,x\nllama3_1_8b,8,3,y\n")
    found = check("evaluate", program.done(tmp_path, "cases.csv", "--out", "out.csv", "--json", module="rapid_dse.evaluate").out)
    assert found["rows"] == 2
    assert found["status"]["invalid"] == 1
    assert found["reasons"] == {"tp must divide num_attention_heads": 1}
    assert found["carried"] == ["mine"]


def test_calibrate_and_validate(tmp_path: Path) -> None:
    runs = rd.sweep(model="llama3_1_8b", num_gpus=16, global_batch_size=64, tp=[1, 2, 4, 8], pp=[1, 2], micro_batch_size=[1, 2],
                    recompute=["none", "full"])  # fmt: skip
    frame = runs.frame().query("status != 'invalid'")
    keys = [name for name in frame.columns if name.split(".")[0] in ("hw", "model", "workload", "parallel", "software")]
    measured = {"measured.step_time_s": 1.1 * frame["step_time_s"], "suite": "mine"}
    pd.DataFrame(frame[keys].assign(**measured)).to_csv(tmp_path / "runs.csv", index=False)
    arguments = ("runs.csv", "--software", "megatron_lm", "--parameters", "matmul_efficiency", "--jobs", "1", "--json")
    found = check("calibrate", program.done(tmp_path, *arguments, module="rapid_dse.calibrate").out)
    assert found["written"] == {"software=megatron_lm_calibrated": "conf/software/megatron_lm_calibrated.yaml"}
    shipped = program.done(tmp_path, "runs.csv", "--shipped", "--json", module="rapid_dse.validate").out
    (table,) = check("validate", shipped)["tables"]
    assert table["suites"][0]["mape"] == pytest.approx(1 - 1 / 1.1, rel=1e-6)  # predictions are 1 / 1.1 of what was measured


def test_network(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(
        "backend,topology,npus,bandwidth_gbps,latency_ns,collective,bytes\ncongestion_aware,Ring,4,50,500,all_reduce,65536\n"
    )
    ended = program.run(tmp_path, "collectives", "table.csv", "--out", "out.csv", "--json", module="rapid_dse.network")
    assert check("network", ended.out)["exit_code"] == ended.code


def test_import_model(tmp_path: Path) -> None:
    path = Path(__file__).parent / "data" / "hugging_face" / "qwen3_30b_a3b.json"
    found = check("import_model", program.done(tmp_path, str(path), "--json", module="rapid_dse.import_model").out)
    assert Path(tmp_path / found["file"]).is_file()
    assert found["model"]["active_parameters"] < found["model"]["parameters"]
