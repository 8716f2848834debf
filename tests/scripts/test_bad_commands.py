"""Wrong arguments and files of the scripts without a trainer: one clear line on stderr, exit code 2, none written."""

import json

import pytest

from scripts import (
    annotate,
    benchmark,
    cache_logits,
    evaluate,
    export_rationales,
    fit,
    import_data,
    import_logits,
    import_rationales,
    inspect_data,
    prefetch,
    push,
    report,
    seal,
    status,
    study,
    sweep,
)
from scripts.microworld.__main__ import run_command

MAINS = {
    "annotate": annotate.main,
    "benchmark": benchmark.main,
    "cache_logits": cache_logits.main,
    "evaluate": evaluate.main,
    "export_rationales": export_rationales.main,
    "import_data": import_data.main,
    "import_logits": import_logits.main,
    "import_rationales": import_rationales.main,
    "inspect_data": inspect_data.main,
    "microworld": run_command,
    "prefetch": prefetch.main,
    "push": push.main,
    "report": report.main,
    "seal": seal.main,
    "status": status.main,
    "study": study.main,
    "sweep": sweep.main,
}
IMPORT = ["--questions=colours_train.jsonl", "--output=i.parquet"]
LOGITS = [
    *("--teacher=models/teacher", "--dtype=float32", "--questions=colours_train.jsonl"),
    *("--rationales=r.jsonl", "--output=i"),
]
QUESTIONS = ["questions", "--num=3", "--split=train", "--seed=0", "--out=q.jsonl"]


@pytest.mark.parametrize(
    "command",
    [
        ["annotate", "summary"],
        ["annotate", "summary", "no.parquet"],
        ["annotate", "summary", "models"],
        ["annotate", "summary", "a\0b"],
        ["benchmark"],
        ["benchmark", "nope"],
        ["cache_logits", "inspect"],
        ["cache_logits", "inspect", "nowhere"],
        ["cache_logits", "inspect", "logits", "--teacher", "x"],
        ["cache_logits", "inspect", "logits", "--nope"],
        ["evaluate", "metrics"],
        ["evaluate", "metrics", "no.parquet"],
        ["evaluate", "metrics", "models"],
        ["evaluate", "metrics", "r.parquet"],
        ["export_rationales", "r.jsonl", "--questions=colours_train.jsonl", "--output=o.txt"],
        ["export_rationales", "nowhere.jsonl", "--questions=colours_train.jsonl", "--output=o.jsonl"],
        ["import_data", "", "--output=o.jsonl"],
        ["import_data", "a/b/c", "--output=o.jsonl"],
        ["import_data", "models/student", "--output=o.jsonl", "--limit=0"],
        ["import_data", "models/student", "--output=o.jsonl", "--fields", "question=a", "question=b"],
        ["import_logits"],
        ["import_logits", "nowhere", *LOGITS],
        ["import_logits", "models", *LOGITS],
        ["import_logits", "r.parquet", *LOGITS],
        ["import_rationales"],
        ["import_rationales", "nope", "models", *IMPORT],
        ["import_rationales", "eit", "nowhere", *IMPORT],
        ["import_rationales", "jsonl", "r.jsonl", *IMPORT],
        ["import_rationales", "jsonl", "models", *IMPORT, "--output=/"],
        ["inspect_data", "nowhere.jsonl"],
        ["inspect_data", "r.jsonl", "--questions=colours_train.jsonl", "--max_length=0"],
        ["microworld"],
        ["microworld", "nonsense"],
        ["microworld", "questions"],
        ["microworld", *QUESTIONS, "--num=many"],
        ["microworld", *QUESTIONS, "--split=nope"],
        ["microworld", "pretrain", "--config=nowhere.yaml"],
        ["prefetch"],
        ["prefetch", "--config=nowhere.yaml"],
        ["push", "nowhere", "--repo=a/b"],
        ["push", "models/student", "--repo=a/b"],
        ["report"],
        ["report", "nope"],
        ["report", "html", "nowhere"],
        ["report", "html", "r.jsonl"],
        ["report", "sync", "nowhere"],
        ["seal"],
        ["seal", "nowhere"],
        ["seal", "r.jsonl"],
        ["seal", "logits/manifest.json"],
        ["seal", "models"],
        ["status", "nowhere"],
        ["status", "r.jsonl"],
        ["status", "--nope"],
        ["study", "destroy"],
        ["study", "run"],
        ["study", "analyze", "no.csv"],
        ["study", "diagnose", "--config=nowhere.yaml"],
        ["sweep"],
        ["sweep", "nowhere.yaml"],
        ["sweep", "models"],
        ["sweep", "r.jsonl"],
    ],
    ids=" ".join,
)
def test_a_command_is_wrong(bench, command: list[str]) -> None:
    name, *args = command
    assert len(bench.refuse_main(MAINS[name], args)) < 700


GRID = "student,student_family,teacher,teacher_family,accuracy\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "needs rows"),
        (GRID, "needs rows"),
        ("a,b,c\n1,2\n", "needs rows"),
        (f"{GRID}a,a,a\n", "fewer fields"),
        (f"{GRID}a,a,a,a,nan\n", "is nan, no share from 0 to 1"),
        (f"{GRID}a,a,a,a,1e999\n", "is inf, no share from 0 to 1"),
        (f"{GRID}a,a,a,a,good\n", "accuracy"),
        (f"{GRID}a,a,a,a,1\na,a,a,a,1\n", "there twice"),
        (f"{GRID}{'a' * 200_000},a,a,a,1\n", "cannot be read as csv"),
        (b"\xff\xfe\x00", "cannot be read as csv"),
    ],
)
def test_a_csv_file_is_no_grid(bench, text: str | bytes, named: str) -> None:
    (bench.folder / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    line = bench.refuse_main(study.main, ["analyze", "x.csv"])
    assert "x.csv" in line and named in line


YAML = {
    "empty": b"",
    "list": b"- 1\n",
    "text": b"study",
    "tab": b"study:\n\tname: x\n",
    "bytes": b"\xff\xfe\x00",
    "utf-16": "study: {}\n".encode("utf-16"),
    "deep": b"[" * 100_000,
    "twice": b"study: {}\nstudy: {}\n",
    "loop": b"study: &a [*a]\n",
    "bomb": b"study:\n  z0: &z0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + b"".join(b"  z%d: &z%d [%s]\n" % (n + 1, n + 1, b", ".join([b"*z%d" % n] * 9)) for n in range(9)),
    "code": b"study: !!python/object/apply:os.system [touch EXECUTED]\n",
}


@pytest.mark.parametrize("content", YAML.values(), ids=YAML)
@pytest.mark.parametrize("command", [["study", "run"], ["study", "diagnose"], ["sweep"], ["fit"]], ids=" ".join)
def test_a_yaml_file_is_none(bench, command: list[str], content: bytes) -> None:
    (bench.folder / "x.yaml").write_bytes(content)
    if command == ["fit"]:
        line = bench.refuse("fit", "--config=x.yaml")
    elif command == ["sweep"]:
        line = bench.refuse_main(sweep.main, ["x.yaml"])
    else:
        line = bench.refuse_main(study.main, [command[1], "--config=x.yaml"])
    assert "x.yaml" in line


def test_a_date_in_a_config_is_text(bench) -> None:
    (bench.folder / "x.yaml").write_text("fit: {model: {student: 2020-01-01}}\n")
    left = ["--config=x.yaml", "--data.questions=colours_train.jsonl", '--data.rationales=["r.parquet"]']
    assert "no such folder, and no hub id (owner/name): 2020-01-01" in bench.refuse_main(fit.main, left)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"product": {"model.nope": [1]}}, "nope"),
        ({"product": {"model.loss.kl_weight": [2]}}, "kl_weight"),
        ({"product": {"model.loss.kl_weight": 0.5}}, "product"),
        ({"product": "abc"}, "product"),
        ({"product": {}}, "there are no arms"),
        ({"product": {}, "zip": {"a": [1], "b": [1, 2]}}, "as many values"),
        ({"config": "grid.yaml"}, "sections fit and evaluate"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_a_sweep_is_wrong(bench, changes: dict, named: str) -> None:
    sections = {"fit": {"model": {"student": "models/student"}, "data": {"questions": "q"}}, "evaluate": {}}
    (bench.folder / "x.yaml").write_text(json.dumps(sections))
    grid = {"config": "x.yaml", "group": "g", "product": {"model.learning_rate": [1e-3]}, **changes}
    (bench.folder / "grid.yaml").write_text(json.dumps(grid))
    assert named in bench.refuse_main(sweep.main, ["grid.yaml", "--dry-run"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fit: 3", "section fit: expected a mapping"),
        ("fit: {model: {student: [a]}}", "fit.model.student: expected a text, found list"),
        ("fit: {data: {encoding: 3}}", "fit.data.encoding: expected a mapping"),
        ("study: {students: {a: 3}}", "study.students.a: expected a mapping"),
        ("study: {teachers: {a: {model: [x]}}}", "study.teachers.a.model: expected a text"),
        ("model: {student: {}}", "model.student: expected a text"),
    ],
)
def test_what_is_to_be_fetched_has_another_shape(bench, text: str, named: str) -> None:
    (bench.folder / "x.yaml").write_text(text)
    line = bench.refuse_main(prefetch.main, ["--config=x.yaml", "--dry-run"])
    assert "x.yaml" in line and named in line


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("README.md", "---\nconfigs: [\n---\n", "expected the node content"),
        ("folder.py", "open('EXECUTED', 'w')", "folder: cannot be loaded"),
        ("train.jsonl", "{bad", "JSON parse error"),
        ("train.parquet", "none", "Parquet"),
    ],
)
def test_a_folder_is_no_data_set(bench, monkeypatch, name: str, content: str, named: str) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", bench.folder.parent / "cache")
    (bench.folder / "folder").mkdir()
    (bench.folder / "folder" / name).write_text(content)
    line = bench.refuse_main(import_data.main, ["folder", "--output=o.jsonl"])
    assert line.startswith("error: folder: cannot be loaded: ") and named in line


def test_metrics_that_are_none_are_not_pushed(bench) -> None:
    bench.run("fit")
    (bench.folder / "runs/bench/run/x.metrics.json").write_text('{"colours": [1]}')
    line = bench.refuse_main(push.main, ["runs/bench/run", "--repo=a/b", "--dry-run"])
    assert "x.metrics.json: holds no metrics by task" in line
