"""Tests of a student's road to ordinary machines: export, evaluation as it runs, and talking with it."""

import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from datamodules.examples import encoding, tokenization
from lightning_modules.export.card import describe_prompt
from lightning_modules.export.learned import read_learned
from lightning_modules.model.llama_cpp import name_runtime
from scripts import chat, evaluate, export, study
from scripts.common.stages import JOBS
from tests.lightning_modules.export.conftest import MODELS, QUESTIONS, Exported, exported  # noqa: F401 (a fixture)

COMMON = ["--data.prompt=plain", "--data.questions=microworld:test:6:0", "--model.max_new_tokens=48"]
COMMON += ["--data.encoding.max_length=320", "--trainer.enable_progress_bar=false"]
QUESTION = "Which thing can float? | the gold fan | the wood box\n"


def test_a_file_is_evaluated_as_it_runs(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    rows = {}
    for name in (str(MODELS / "a-student"), str(exported.file("f16"))):
        evaluate.main([*COMMON, f"--model.student={name}", f"--output={tmp_path / Path(name).name}.parquet"])
        rows[name] = pq.read_table(tmp_path / f"{Path(name).name}.parquet").to_pylist()
    plain, own = rows.values()
    assert {row["runtime"] for row in plain} == {"transformers"} and {row["runtime"] for row in own} == {name_runtime()}
    for first, second in zip(plain, own, strict=True):
        same = ("question_id", "completion", "finish_reason", "answer_neutral", "num_completion_tokens")
        assert {key: first[key] for key in same} == {key: second[key] for key in same}
        assert second["option_log_likelihoods"] == pytest.approx(first["option_log_likelihoods"], abs=0.2)
    capsys.readouterr()
    # The other runtime is another result.
    with (
        pytest.warns(UserWarning, match="transformers unpacks its weights"),
        pytest.raises(ValueError, match="another"),
    ):
        command = [*COMMON, f"--model.student={exported.file('f16')}", "--model.runtime=transformers"]
        evaluate.main([*command, f"--output={tmp_path / 'a-student-f16.gguf'}.parquet"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((f"--model.student={MODELS / 'a-student'}",), "model.runtime=llama_cpp runs GGUF files, not"),
        (("--model.student=x.gguf", "--model.dtype=bfloat16"), "model.dtype is given with model.runtime=llama_cpp"),
    ],
)
def test_settings_that_llama_cpp_would_ignore_are_refused(more: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.parse([*COMMON, "--model.runtime=llama_cpp", f"--output={tmp_path / 'x.parquet'}", *more])


def test_a_run_and_a_file_answer_alike(
    exported: Exported,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    shutil.copytree(MODELS / "a-student", tmp_path / "run" / "student")
    (tmp_path / "run" / "config.yaml").write_text("data: {prompt: plain}\n")
    said = []
    for args in ([str(tmp_path / "run")], [str(exported.file("f16"))]):
        monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\none | alone\n"))
        chat.main([*args, "--max_new_tokens=48"])
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out and "error: a line is a question" in said[0].err
    assert said[0].out.startswith("rationale: ") and "\nanswer: " in said[0].out


def test_a_runs_prompt_is_carried_whole(exported: Exported, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(MODELS / "a-student", run / "student")
    options = {"template_options": {"enable_thinking": False}, "prompt_language": "en"}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"prompt": "plain", "encoding": options}}))
    (run / "DONE").touch()
    command = ["gguf", f"--model.student={run / 'student'}", f"--output={tmp_path / 'out'}", "--types=f16"]
    export.main([*command, f"--calibration={exported.rationales}", f"--questions={QUESTIONS}", "--max_new_tokens=4"])
    [card, file] = sorted((tmp_path / "out").iterdir())
    said = {"name": "plain", "template_options": {"enable_thinking": False}, "language": "en"}
    assert json.loads(card.read_text())["prompt"] == said
    asked, real = [], tokenization.encode_prompt
    spy = lambda *args: asked.append(describe_prompt(args[1])) or real(*args)  # noqa: E731
    monkeypatch.setattr(tokenization, "encode_prompt", spy)
    for student in (run, file):
        monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))
        chat.main([str(student), "--max_new_tokens=4"])
    assert asked == [said, said]


def test_what_is_longer_than_asked_for_calibrates_nothing(exported: Exported, tmp_path: Path) -> None:  # noqa: F811
    command = ["gguf", f"--model.student={MODELS / 'a-student'}", f"--output={tmp_path / 'out'}", "--prompt=plain"]
    command += [f"--calibration={exported.rationales}", f"--questions={QUESTIONS}"]
    with pytest.raises(ValueError, match=r"0 rationales fit 20 tokens \(--calibration_length\)"):
        export.main([*command, "--calibration_length=20"])


def test_an_interrupted_answer_ends_alone(exported: Exported, monkeypatch, capsys) -> None:  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO(2 * QUESTION))
    real, calls = encoding.decode_completion, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(encoding, "decode_completion", interrupt)
    chat.main([str(exported.file("f16")), "--prompt=plain", "--max_new_tokens=48"])
    first, second = capsys.readouterr().out.split(" [stopped]\n")
    assert first.startswith("rationale: ") and "\nanswer: " in second


@pytest.mark.parametrize("kind", ["folder", "f16"])
def test_a_question_that_is_too_long_is_refused_alone(exported: Exported, kind: str, monkeypatch, capsys) -> None:  # noqa: F811
    student = str(MODELS / "a-student" if kind == "folder" else exported.file(kind))
    long = "Is it " + 200 * "a stone " + "?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(long + QUESTION))
    chat.main([student, "--prompt=plain", "--max_new_tokens=300"])
    said = capsys.readouterr()
    assert "tokens with its prompt, more than 212; shorten it" in said.err and said.out.count("answer: ") == 1
    with pytest.raises(ValueError, match="--max_new_tokens with a prompt is 513, more than the context of 512 tokens"):
        chat.main([student, "--prompt=plain", "--max_new_tokens=512"])
    with pytest.raises(ValueError, match="--max_new_tokens: '0' is no whole number of at least 1"):
        chat.main([student, "--max_new_tokens=0"])
    # A file's context may be much longer than memory is.
    monkeypatch.setattr(chat, "LONGEST_PROMPT", 50)
    assert chat.load(student, 100)[2] == 50


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--types=Q9"], "--types: 'Q9' is unknown; there are: f32, f16"),
        ([], "--questions: name the training questions"),
        (["--max_new_tokens=0"], "--max_new_tokens: '0' is no whole number of at least 1"),
        (["--calibration_length=0"], "--calibration_length: '0' is no whole number of at least 1"),
        (["--output=full"], "full: is there already"),
    ],
)
def test_wrong_commands_are_refused(more: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        export.main(["gguf", "--model.student=s", "--calibration=r.parquet", "--output=out", *more])


def test_a_studys_files_are_calibrated_on_what_each_arm_learned(tmp_path: Path, monkeypatch, capsys) -> None:
    content = yaml.safe_load((MODELS.parents[1] / "experiments" / "microworld.yaml").read_text())
    content["study"] |= {"supervisions": ["label"], "seeds": 1, "sizes": [9], "quantization": ["none", "Q4_0"]}
    content["study"]["tasks"] = {"m": {"train": "microworld:train:12:0", "test": ["microworld:test:4:0"]}}
    content["study"]["students"].pop("b")
    # Nobody writes for an arm of labels.
    content["study"]["teachers"] = {"x": {"rationales": "x.jsonl", "name": "x", "family": "x"}}
    content["fit"]["trainer"]["max_epochs"] = 1
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "configs").symlink_to(MODELS.parents[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for job in study.parse(["--config=tiny.yaml"]).jobs():
        {**JOBS, "study": study.main}[job.stage](job.args)
    folder = tmp_path / "runs" / "microworld"
    card = json.loads((folder / "files" / "a-label-n9-seed0" / "card.json").read_text())
    assert card["calibration"]["rationales"] == [] and card["calibration"]["examples"] == 9 - 2
    assert card["student_results"]["microworld"]["n"] == 4 and card["teachers"] == []
    results = json.loads((folder / "results.json").read_text())
    [[cell]] = [own["cells"] for own in results["quantization"]]
    own, [plain] = card["files"]["student-Q4_0.gguf"], [cell for cell in results["cells"] if cell["trained_on"]]
    assert (cell["bytes"], cell["tokens_per_s"]) == (own["bytes"], own["tokens_per_s"])
    rows = pq.read_table(folder / "predictions" / "Q4_0" / "a-label-n9-seed0.parquet").to_pylist()
    assert {row["runtime"] for row in rows} == {name_runtime()} and {row["arm"] for row in rows} == {"label-n9-Q4_0"}
    assert cell["accuracy"] == sum(row["correct_neutral"] for row in rows) / 4
    assert cell["estimate"] == pytest.approx(cell["accuracy"] - plain["accuracy"])
    command = ["gguf", "--model.student=runs/microworld/a-label-n9-seed0/student", "--types=Q4_0"]
    command.append("--output=runs/microworld/files/a-label-n9-seed0")
    capsys.readouterr()
    export.main(command)
    assert capsys.readouterr().out == "runs/microworld/files/a-label-n9-seed0: complete already\n"
    with pytest.raises(ValueError, match="is there already"):
        export.main([*command, "--max_new_tokens=5"])
    with pytest.raises(ValueError, match="without it the run's own count"):
        export.main([*command, "--prompt=plain"])


def test_what_a_run_trained_on_is_read_as_it_did(inside: Path) -> None:
    written = pq.read_table("teacher/rationales.parquet").to_pylist()
    learned = read_learned("runs/g/r/student")
    # All that were right, those that were held out for validation among them.
    right = {f"{own['question_id']}/a-teacher/0" for own in written if own["correct"]}
    assert set(learned.examples.column("id")) == right
    assert (learned.questions, learned.prompt.name) == ("microworld:train:8:0", "plain")
    with pytest.raises(ValueError, match=r"--calibration: .*a-student lies in no finished run's folder"):
        read_learned(str(MODELS / "a-student"))


def test_a_run_says_what_its_student_learned(tmp_path: Path) -> None:
    run = tmp_path / "g" / "r"
    (run / "student").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {questions: q.jsonl, prompt: plain}\n")
    assert export.read_run(str(run / "student")) == ({}, {})
    (run / "DONE").touch()
    (run / "test.metrics.json").write_text(json.dumps({"t": {"accuracy_neutral": {"value": 0.5, "n": 4}}}))
    data, results = export.read_run(str(run / "student"))
    assert data["questions"] == "q.jsonl" and results == {"t": {"value": 0.5, "n": 4}}
