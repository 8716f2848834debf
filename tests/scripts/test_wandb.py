"""What W&B's offline files hold after real stages, and their upload."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from lightning_modules.tracking.wandb_files import find_fragments, read_records, sync
from tests.halting.process import PATIENCE, wait_until
from tests.scripts.conftest import COMMANDS, Bench
from tests.scripts.pipeline import count_lines, spawn


@pytest.fixture(autouse=True)
def offline(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The default mode; W&B's service, which processes that a test starts would share, ends with the test."""
    monkeypatch.delenv("WANDB_MODE")
    yield
    wandb.teardown()


def items(entries) -> dict:
    return {".".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}


def read_closed(file: Path) -> list:
    """Returns a finished run's records; W&B's service writes the last of them a moment after the run has ended."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        records = list(read_records(file))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file}: never closed")


def read_file(folder: Path) -> dict[str, list]:
    """Returns the records by kind of the only fragment of a run."""
    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    records: dict[str, list] = {}
    for record in read_closed(file):
        kind = record.WhichOneof("record_type")
        records.setdefault(kind, []).append(getattr(record, kind))
    return records


AXES = {
    "teacher": "teacher", "teacher_family": "tiny", "student": "student", "student_family": "tiny",
    "supervision": "rationale+logits", "kl_weight": 0.5, "temperature": 1.0, "divergence": "forward_kl",
    "seed": 0, "task": "colours",
}  # fmt: skip


def test_a_fit_logs_its_metrics_axes_and_lineage(bench: Bench) -> None:
    bench.run("fit", "--run.student_family=tiny", "--run.id=s-rationale+logits", "--trainer.max_epochs=2")
    folder = bench.folder / "runs" / "bench" / "s-rationale+logits"
    records = read_file(folder)
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    history = [items(entry.item) for entry in records["history"]]
    shown = [{k: v for k, v in entry.items() if not k.startswith("_")} for entry in history]
    assert [{"step": entry.pop("trainer/global_step"), **entry} for entry in shown] == kept
    assert {entry.step_metric for entry in records["metric"] if entry.glob_name == "*"} == {"trainer/global_step"}

    run = records["run"][-1]
    assert (run.run_id, run.run_group, run.job_type) == ("s-rationale+logits", "bench", "fit")
    assert set(run.tags) == {"rationale+logits", "colours", "in-family"}
    assert items(records["config"][-1].update).items() >= AXES.items()
    assert json.loads((folder / "axes.json").read_text()) == AXES

    artifacts = {artifact.type: artifact for artifact in records["artifact"]}
    assert set(artifacts) == {"rationales", "logit-cache", "student"}
    learned_from = json.loads(artifacts["student"].metadata)["learned_from"]
    assert json.loads(artifacts["rationales"].metadata)["sha256"] == learned_from["r.parquet"]
    assert records["exit"][0].exit_code == 0


def test_an_evaluation_has_the_axes_of_its_students_run_and_a_table(bench: Bench) -> None:
    bench.run("fit", "--run.student_family=tiny")
    bench.run("evaluate", "--model.student=runs/bench/run/student", "--model.arm=in", "--wandb.samples=5")
    records = read_file(bench.folder / "out")
    run = records["run"][-1]
    assert (run.run_group, run.job_type, run.display_name) == ("bench", "evaluate", "p")
    assert items(run.config.update).items() >= AXES.items()
    [entry] = [items(entry.item) for entry in records["history"]]
    assert 0 <= entry["test/accuracy_neutral"] <= 1
    [file] = bench.folder.glob(f"out/wandb/offline-run-*/files/{entry['test/predictions.path']}")
    content = json.loads(file.read_text())
    assert content["columns"][:2] == ["question", "gold"]
    assert len(content["data"]) == 5


def test_names_that_wandb_would_refuse_cost_no_run(bench: Bench) -> None:
    bench.edit("colours_train.jsonl", lambda records: [{**record, "task": "t" * 70} for record in records])
    alone = ["--data.rationales=null", "--data.logits=null", "--data.supervision=label", "--model.loss.kl_weight=0"]
    bench.run("fit", "--run.id=é,a", *alone)
    bench.run("evaluate", "--model.student=runs/bench/é,a/student")
    runs = [read_file(bench.folder / folder)["run"][-1] for folder in ("runs/bench/é,a", "out")]
    assert runs[0].display_name == "é,a"
    for run in runs:
        [task] = [tag for tag in run.tags if tag.startswith("t")]
        assert task == "t" * 63 + "…"


def test_an_untuned_student_is_a_row_of_its_own(bench: Bench) -> None:
    bench.run("evaluate", "--wandb.group=study", "--wandb.student_family=tiny")
    config = items(read_file(bench.folder / "out")["run"][-1].config.update)
    assert {name: config[name] for name in ("teacher", "student_family", "supervision", "kl_weight")} == {
        "teacher": None, "student_family": "tiny", "supervision": "untuned", "kl_weight": None,
    }  # fmt: skip
    # What a process logs next is offline, too.
    bench.run("fit")
    assert read_file(bench.folder / "runs" / "bench" / "run")["exit"][0].exit_code == 0


@pytest.mark.parametrize("disabled", [True, False])
def test_an_evaluation_without_wandb(bench: Bench, monkeypatch: pytest.MonkeyPatch, disabled: bool) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled" if disabled else "offline")
    bench.run("evaluate", *([] if disabled else ["--wandb.enabled=false"]))
    assert not (bench.folder / "out" / "wandb").exists()


def test_an_unknown_mode(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert "there are online, offline, disabled" in bench.refuse("fit")


@pytest.fixture
def fragments(bench: Bench) -> Path:
    """A finished run, an attempt that was killed at once, one that was continued, and one that may be running."""
    bench.run("fit")
    wandb = bench.folder / "runs" / "bench" / "run" / "wandb"
    [finished] = wandb.glob("offline-run-*")
    read_closed(finished / "run-run.wandb")
    whole = (finished / "run-run.wandb").read_bytes()
    for name, content in (
        ("20200101_000000-run", whole[:7]),
        ("20200101_000001-run", whole[: len(whole) // 2]),
        ("20200101_000002-other", whole[: len(whole) // 2]),
    ):
        folder = wandb / f"offline-run-{name}"
        folder.mkdir()
        (folder / f"run-{name.split('-')[1]}.wandb").write_bytes(content)
    return bench.folder / "runs"


def test_a_fragments_state(fragments: Path) -> None:
    assert [fragment.state for fragment in find_fragments(fragments)] == ["empty", "pending", "open", "pending"]


def test_sync_uploads_each_fragment_once_and_in_order(fragments: Path, tmp_path: Path) -> None:
    script = tmp_path / "upload.py"
    script.write_text(
        "import pathlib, sys\n"
        "for folder in map(pathlib.Path, sys.argv[1:]):\n"
        "    [file] = folder.glob('*.wandb')\n"
        "    file.with_suffix('.wandb.synced').touch()\n"
        "    print(folder.name, file=open(f'{sys.argv[0]}.log', 'a'))\n"
    )
    command = (sys.executable, str(script))
    log = Path(f"{script}.log")
    assert sync(fragments, True, False, command).endswith("2 to upload")
    assert not log.exists()
    assert sync(fragments, False, False, command).endswith("2 uploaded")
    first, second = log.read_text().split()
    assert first.endswith("20200101_000001-run") and second.endswith("-run") and first < second
    assert sync(fragments, False, False, command).endswith("0 uploaded")
    assert sync(fragments, False, True, command).endswith("1 uploaded")
    assert len(log.read_text().split()) == 3


def test_a_failed_upload_says_so(fragments: Path) -> None:
    with pytest.raises(ValueError, match="exit code 3"):
        sync(fragments, False, False, (sys.executable, "-c", "raise SystemExit(3)"))


def test_no_runs(bench: Bench) -> None:
    from scripts import report

    assert "holds no offline runs" in bench.refuse_main(report.main, ["sync", "models"])


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, and no server: a user who has asked for W&B online."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()


@pytest.mark.parametrize("stage", ["fit", "evaluate"])
def test_without_a_key_a_run_is_logged_offline_with_one_line(bench: Bench, unreachable, stage: str) -> None:
    with pytest.warns(UserWarning, match=r"W&B cannot be used \(there is no key") as said:
        bench.run(stage)
    assert len([warning for warning in said if "W&B" in str(warning.message)]) == 1
    [folder] = bench.folder.rglob("offline-run-*")
    assert read_closed(next(folder.glob("*.wandb")))


@pytest.mark.parametrize(
    ("stage", "option"), [("fit", "--run.wandb=required"), ("evaluate", "--wandb.enabled=required")]
)
def test_without_a_key_a_run_that_requires_it_is_refused_at_once(bench: Bench, unreachable, stage, option) -> None:
    assert "W&B is required, but cannot be used: there is no key" in bench.refuse(stage, option)


def test_a_run_that_requires_it_does_not_begin_offline(bench: Bench, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "W&B is required, but WANDB_MODE is offline" in bench.refuse("fit", "--run.wandb=required")


@pytest.mark.slow
def test_without_a_network_a_run_is_logged_offline_within_seconds(bench: Bench, unreachable, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with pytest.warns(UserWarning, match="W&B cannot be used"):
        bench.run("fit")
    assert len([*bench.folder.rglob("offline-run-*")]) == 1 and [*bench.folder.rglob("DONE")]


@pytest.mark.slow
def test_a_run_that_is_being_written_is_left_alone(bench: Bench) -> None:
    """A fit in a process of its own, whose file is read again and again while W&B writes it."""
    args = [*COMMANDS["fit"], "--trainer.max_epochs=200"]
    # It cannot end before it was looked at.
    process = spawn("fit", args, bench.folder, "open:metrics.jsonl:100", WANDB_MODE="offline")
    metrics = bench.folder / "runs" / "bench" / "run" / "metrics.jsonl"
    try:
        wait_until(process, lambda: count_lines(metrics) >= 3)
        for number in range(3, 30, 3):
            wait_until(process, lambda number=number: count_lines(metrics) >= number)
            said = sync(bench.folder / "runs", False, False, (sys.executable, "-c", "raise SystemExit(1)"))
            assert said.endswith("0 uploaded") and said.startswith(("open ", "empty "))
    finally:
        process.kill()
        process.communicate()
