"""What makes another run: every setting and every file that can change a result, and nothing else."""

import inspect
import itertools
import json
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import lightning as L
import pytest

from datamodules.annotation import QuestionDataModule
from datamodules.distillation import DistillationDataModule, ExampleDataModule, RationaleDataModule
from datamodules.evaluation import EvaluationDataModule
from datamodules.tasks import wording
from datamodules.text.languages import get_language
from lightning_modules.model.pretrained import identify_local
from lightning_modules.run.folder import flatten
from lightning_modules.teacher.backends import TransformersBackend
from lightning_modules.teacher.openai_backend import OpenAIBackend
from lightning_modules.teacher.vllm_backend import VLLMBackend
from scripts import annotate, cache_logits, evaluate, fit, status
from scripts.common.identity import NEUTRAL, NEUTRAL_BACKEND
from tests.scripts.pipeline import COMMANDS, MODELS, run_stage
from tests.tiny import make_questions

# What can change a result. A setting that is new is decided on: it goes here, or into `NEUTRAL`.
COUNTED = {
    "trainer": {
        *("precision", "callbacks", "fast_dev_run", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
        *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
        *("overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
        *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark"),
        *("use_distributed_sampler", "barebones", "plugins", "sync_batchnorm", "reload_dataloaders_every_n_epochs"),
    },
    "data": {
        *("tokenizer", "questions", "prompt", "limit", "limit_seed", "rationales", "supervision", "logits"),
        *(f"own.{name}" for name in ("rationales", "logits", "logit_weights", "teacher_prompt", "mix", "first_step")),
        *("own.max_lost", "own.min_distinct", "draw.number", "draw.part", "draw.seed", "draw.limit_seed"),
        *("rows", "rows_against", "shown_rationales", "own.shown_rationales"),
        *("rewrites", "rewrites_of", "option_text", "references", "teachers", "keep_truncated"),
        *(
            f"encoding.{name}"
            for name in ("max_length", "skip_too_long", "template_options", "revision", "prompt_language")
        ),
        *(f"filters.{name}" for name in ("teachers", "correct_only", "keep_truncated", "samples_per_question")),
        *(f"filters.{name}" for name in ("answered_by", "solved_by", "matched_with", "match_seed", "without")),
        *(f"alignment.{name}" for name in ("kind", "spans", "whitespace", "max_unaligned")),
        *(f"controls.{name}" for name in ("answer_position", "shuffled", "shuffle_seed", "thinking")),
        *(f"controls.{name}" for name in ("logits_teacher", "logit_weights")),
        *(f"batches.{name}" for name in ("tokens_per_step", "order_seed", "samples_per_epoch", "teacher_weights")),
        *(f"validation.{name}" for name in ("fraction", "seed")),
    },
    "": {"seed_everything", "trainer", "model", "data", "bert_model", "language_fidelity"},
}
# Of a stage's model.
COUNTED_IF_GIVEN = {"more_extractors"}
DATA = (ExampleDataModule, DistillationDataModule, RationaleDataModule, EvaluationDataModule, QuestionDataModule)


def list_arguments(*components: type) -> set[str]:
    names = set()
    for component in components:
        for name, parameter in inspect.signature(component).parameters.items():
            own = parameter.default if is_dataclass(parameter.default) else None
            names |= {f"{name}.{setting.name}" for setting in fields(own)} if own else {name}
    return names - {"args", "kwargs"}


@pytest.mark.parametrize(("section", "components"), [("trainer", (L.Trainer,)), ("data", DATA)])
def test_every_setting_counts_or_is_known_to_be_neutral(section: str, components: tuple) -> None:
    assert not COUNTED[section] & NEUTRAL[section]
    assert COUNTED[section] | NEUTRAL[section] == list_arguments(*components)


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (fit, ["--model.student=m", "--data.questions=q", "--run.root=nowhere"]),
        (cache_logits, ["--model.teacher=m", "--data.questions=q", "--output=nowhere"]),
        (annotate, ["--model.teacher=m", "--model.family=f", "--data.questions=q", "--output=nowhere.parquet"]),
        (evaluate, ["--model.student=m", "--data.questions=q", "--output=nowhere.parquet"]),
    ],
)
def test_so_does_everything_on_a_stages_command_line(script, command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli = script.parse(command)
    assert not COUNTED[""] & NEUTRAL[""]
    given = {name for name in cli.config.as_dict() if name in COUNTED[""] | NEUTRAL[""]}
    assert given == set(cli.config.as_dict())
    config = cli.result_config()
    assert set(config) == (given & COUNTED[""]) | {"files"}
    for section in ("trainer", "data"):
        linked = {"tokenizer", "encoding.revision"}
        assert set(flatten(config[section])) == set(flatten(cli.config[section].as_dict())) & COUNTED[section] - linked
    assert set(config["model"]) == set(cli.config.model.as_dict()) - COUNTED_IF_GIVEN


def test_what_else_reads_answers_counts_where_it_is_given(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "--model.student=m",
        "--data.questions=q",
        "--output=nowhere.parquet",
        "--model.more_extractors=[english]",
    ]
    assert evaluate.parse(command).result_config()["model"]["more_extractors"] == ["english"]


def test_a_backends_settings_are_decided_on(tmp_path, monkeypatch) -> None:
    given = list_arguments(TransformersBackend, OpenAIBackend, VLLMBackend)
    # None of what vLLM's engine is started with says what a teacher answers; other kernels round otherwise.
    assert {name.partition(".")[0] for name in given} == NEUTRAL_BACKEND | {"generation"}


# Each ends another way than the pipeline's own run, which is done.
CHANGES = [
    "--trainer.overfit_batches=1",
    "--trainer.max_time=00:01:00:00",
    "--trainer.min_epochs=1",
    "--trainer.limit_val_batches=1",
    '--trainer.callbacks=[{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}]',
    "--data.batches.tokens_per_step=601",
]
SAME = [
    "--trainer.devices=1",
    "--trainer.log_every_n_steps=7",
    "--data.batches.tokens_per_batch=99",
    "--data.batches.num_workers=1",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_that_counts_is_not_done_already(inside, change: str) -> None:
    with pytest.raises(ValueError, match="begun with another config: "):
        fit.parse([*COMMANDS["fit"], change])
    own, other = (fit.parse([*COMMANDS["fit"], "--run.id=null", *more]).run.id for more in ((), (change,)))
    assert own != other


def test_a_setting_that_does_not_count_is(inside) -> None:
    assert "done already" in run_stage("fit", *SAME)


def test_other_files_under_the_same_names_are_not_done_already(inside, tmp_path) -> None:
    student = shutil.copytree(MODELS / "a-student", tmp_path / "student")
    shutil.copy("teacher/rationales.parquet", tmp_path / "r.parquet")
    options = [f"--model.student={student}", f"--data.rationales=[{tmp_path}/r.parquet]", "--trainer.max_epochs=1"]
    options += ["--data.supervision=rationale", "--data.logits=null", "--model.loss.kl_weight=0", "--run.id=files"]
    options += [f"--run.root={tmp_path}"]
    run_stage("fit", *options)
    shutil.copy("runs/g/r/student/model.safetensors", student)
    with pytest.raises(ValueError, match=r"another config: files\..*/student was '"):
        run_stage("fit", *options)
    shutil.copy(MODELS / "a-student" / "model.safetensors", student)
    assert "done already" in run_stage("fit", *options)
    run_stage("annotate", f"--output={tmp_path}/again.parquet", "--data.limit=7")
    shutil.copy(tmp_path / "again.parquet", tmp_path / "r.parquet")
    with pytest.raises(ValueError, match=r"another config: files\..*/r.parquet was '"):
        run_stage("fit", *options)
    # What is gone is not another file.
    (tmp_path / "r.parquet").unlink()
    assert "done already" in run_stage("fit", *options)


def test_every_form_of_a_local_model_is_known_by_its_content(tmp_path) -> None:
    """Folders with their tokenizers and templates, adapters with their base, GGUF files and checkpoints."""
    adapter, folder = tmp_path / "adapter", shutil.copytree(MODELS / "a-student", tmp_path / "student")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    files = [folder / "tokenizer.json", folder / "generation_config.json", folder / "chat_template.jinja"]
    files += [tmp_path / name for name in ("adapter/adapter_model.safetensors", "x.gguf", "x.ckpt")]
    for file in files[2:]:
        file.write_bytes(b"{}")
    found = [{str(path): identify_local(str(path)) for path in (folder, adapter, *files[-2:])}]
    for file in files:
        file.write_bytes(file.read_bytes() + b"\n")
        found.append({path: identify_local(path) for path in found[0]})
    changed = [{Path(path).name for path in old if old[path] != new[path]} for old, new in itertools.pairwise(found)]
    assert changed == [{"student", "adapter"}] * 3 + [{"adapter"}, {"x.gguf"}, {"x.ckpt"}]
    assert identify_local("owner/name") is identify_local(str(tmp_path)) is None
    command = ["--data.questions=q", f"--model.student={adapter}", f"--run.root={tmp_path}"]
    assert fit.parse(command).result_config()["files"] == {str(adapter): found[-1][str(adapter)]}
    command = ["--data.questions=q", "--model.student=m", f"--output={tmp_path}/p.parquet", f"--bert_model={folder}"]
    assert evaluate.parse(command).result_config()["files"] == {str(folder): found[-1][str(folder)]}


def test_questions_that_changed_are_annotated_anew(inside, tmp_path) -> None:
    questions = [vars(question) for question in make_questions(2)]
    path = tmp_path / "colours_train.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    options = [f"--data.questions={path}", f"--output={tmp_path}/r.parquet", "--model.max_new_tokens=2"]
    run_stage("annotate", *options)
    assert "complete already" in run_stage("annotate", *options)
    path.write_text(json.dumps(questions[1]) + "\n")
    with pytest.raises(ValueError, match="made with another configuration, or from other files"):
        run_stage("annotate", *options)


def test_a_language_whose_file_changed_makes_another_run_of_its_questions(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    question = {"id": "1", "question": "Was?", "choices": ["a", "b"], "gold": "A", "language": "de"}
    Path("de.jsonl").write_text(json.dumps(question))
    command = ["--model.student=m", "--data.questions=de.jsonl"]
    before, english = fit.parse(command), fit.parse(["--model.student=m", "--data.questions=microworld:train:8:0"])
    assert [*before.result_config()["languages"]] == ["de"] and "languages" not in english.result_config()
    words = replace(get_language("de").words, answer=("Lösung",))
    monkeypatch.setattr(wording, "get_language", lambda tag: replace(get_language(tag), words=words))
    assert fit.parse(command).run.id != before.run.id


def test_a_task_whose_file_changed_makes_another_run(tmp_path, monkeypatch) -> None:
    file = Path(shutil.copy(Path(__file__).parents[3] / "configs" / "tasks" / "gsm8k.yaml", tmp_path / "mine.yaml"))
    command = ["--model.student=m", f"--data.questions=task:{file}:train"]
    before = fit.parse(command).run.id
    assert fit.parse(command).run.id == before
    file.write_text(file.read_text().replace("gold: answer", "gold: result"))
    assert fit.parse(command).run.id != before


STOP = "tests.scripts.common.test_identity.Stop"


class Stop(L.Callback):
    """Stops after so many steps.

    Args:
        steps: How many.
    """

    def __init__(self, steps: int):
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        trainer.should_stop = trainer.global_step >= self.steps

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        trainer.should_stop = self.steps == 0


def stop_after(steps: int) -> str:
    return f'--trainer.callbacks=[{{"class_path": "{STOP}", "init_args": {{"steps": {steps}}}}}]'


def test_a_run_that_ended_early_says_so(inside, tmp_path, capsys, monkeypatch) -> None:
    options = [f"--run.root={tmp_path}/runs", "--run.id=early"]
    assert "done early, after 2 of " in run_stage("fit", *options, stop_after(2))
    done = json.loads((tmp_path / "runs/g/early/DONE").read_text())
    assert done["global_step"] == 2 and done["ended_early"].endswith(": a callback stopped it")
    assert f"it ended early, {done['ended_early']}" in run_stage("fit", *options, stop_after(2))
    late = [f"--run.root={tmp_path}/runs", "--run.id=late", "--trainer.max_epochs=900"]
    run_stage("fit", *late, "--trainer.max_time=00:00:00:01")
    late_end = json.loads((tmp_path / "runs/g/late/DONE").read_text())["ended_early"]
    assert late_end.endswith(": trainer.max_time was over")
    status.main([str(tmp_path / "runs/g")])
    shown = capsys.readouterr().out
    assert f"ended early, {done['ended_early']}" in shown and f"ended early, {late_end}" in shown
    assert json.loads(Path("runs/g/r/DONE").read_text())["ended_early"] is None


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--trainer.max_epochs=0", "trainer.max_epochs=0 leaves nothing to train"),
        ("--trainer.max_steps=0", "trainer.max_steps=0 leaves nothing to train"),
        ("--trainer.max_time=00:00:00:00", "trainer.max_time=0.0 leaves nothing to train"),
        ("--trainer.limit_train_batches=0", "trainer.limit_train_batches=0 leaves nothing to train"),
        ("--trainer.limit_train_batches=0.0", "trainer.limit_train_batches=0.0 leaves nothing to train"),
        ("--trainer.limit_train_batches=0.001", "limit_train_batches"),
        ("--trainer.max_epochs=-1", "trainer.max_epochs=-1 has no end"),
        (
            "--trainer.accumulate_grad_batches=2",
            "accumulate_grad_batches would be ignored: data.batches.tokens",
        ),
        (stop_after(0), "the training ended before its first step: a callback stopped it; there is no student"),
        ("--trainer.val_check_interval=1000", "`val_check_interval` (1000) must be less than or equal"),
        ("--model.adapter.target_modules=[nowhere]", "no linear layer of models/student is named nowhere"),
        ("--trainer.limit_train_batches=-1", "limit_train_batches"),
        ("--data.filters.teachers=[]", "data.filters.teachers is empty; name at least one, or leave it out"),
        ("--data.filters.answered_by=[]", "data.filters.answered_by is empty"),
        ("--data.filters.solved_by=[]", "data.filters.solved_by is empty"),
        ("--data.filters.matched_with=[]", "data.filters.matched_with is empty"),
        ("--model.keep_layers=[]", "model.keep_layers is empty"),
        ("--model.adapter.target_modules=[]", "model.adapter.target_modules is empty"),
    ],
)
def test_what_would_train_nothing_or_fails_before_the_first_step_leaves_nothing(bench, option: str, line: str) -> None:
    assert line in bench.refuse("fit", option)
