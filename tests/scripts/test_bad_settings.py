"""Settings that no run could follow: one clear line on stderr, exit code 2, and nothing written."""

import json
import os
from pathlib import Path

import pytest
import torch

TOO_MANY = (os.cpu_count() or 1) + 1
OTHERS = ("cache_logits", "evaluate")


# Lightning's own checks of its trainer.


@pytest.mark.parametrize("stage", ["annotate", "fit", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--trainer.accelerator=gpu", "trainer"),
        ("--trainer.accelerator=nope", "trainer"),
        ("--trainer.devices=0", "devices"),
        ("--trainer.devices=-1", "devices"),
        ("--trainer.devices=[]", "trainer"),
        ("--trainer.strategy=nope", "trainer"),
        ("--trainer.strategy=deepspeed", "trainer"),
        ("--trainer.strategy=ddp_spawn", "use ddp"),
        ("--trainer.strategy=ddp_notebook", "use ddp"),
        ("--trainer.precision=8", "precision"),
        ("--trainer.precision=transformer-engine", "trainer"),
        ("--trainer.profiler=nope", "trainer"),
        ("--trainer.num_nodes=0", "num_nodes"),
        ("--trainer.plugins=nope", "plugins"),
        ("--trainer.callbacks=nope.Nope", "callbacks"),
        ("--seed_everything=-1", "seed"),
        ("--seed_everything=99999999999999", "seed"),
        (f"--trainer.devices={TOO_MANY}", f"this machine has {TOO_MANY - 1} processors"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_trainer_cannot_be_built(bench, stage: str, option: str, named: str) -> None:
    assert named in bench.refuse(stage, option)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--trainer.max_epochs=0", "max_epochs=0"),
        ("--trainer.max_epochs=-1", "max_epochs=-1"),
        ("--trainer.max_epochs=-7", "max_epochs"),
        ("--trainer.max_steps=0", "max_steps=0"),
        ("--trainer.max_steps=-5", "max_steps"),
        ("--trainer.max_time=bad", "duration='bad'"),
        ("--trainer.max_time=00:00:00:00", "max_time"),
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches"),
        ("--trainer.gradient_clip_val=-1", "gradient_clip_val=-1"),
        ("--trainer.gradient_clip_val=.nan", "gradient_clip_val"),
        ("--trainer.gradient_clip_val=.inf", "gradient_clip_val"),
        ("--trainer.gradient_clip_algorithm=nope", "nope"),
        ("--trainer.limit_train_batches=0", "limit_train_batches"),
        ("--trainer.limit_train_batches=2.5", "2.5"),
        ("--trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch=0"),
        ("--trainer.val_check_interval=0", "val_check_interval=0"),
        ("--trainer.val_check_interval=1000", "val_check_interval"),
        ("--trainer.val_check_interval=00:00:00:10", "val_check_interval is a time"),
        ("--trainer.enable_checkpointing=false", "enable_checkpointing"),
        ("--trainer.barebones=true", "barebones"),
        ("--trainer.reload_dataloaders_every_n_epochs=-1", "reload_dataloaders_every_n_epochs"),
        ("--data.batches.num_workers=1000", "data.batches.num_workers=1000: each is a process, and this machine has"),
        (f"--data.batches.num_workers={TOO_MANY}", "lower it"),
        ("--data.batches.tokens_per_batch=0", "tokens_per_batch"),
        ("--data.batches.samples_per_epoch=0", "samples_per_epoch"),
        ("--data.batches.teacher_weights={teacher: -1}", "teacher_weights"),
        ("--data.batches.teacher_weights={teacher: .nan}", "teacher_weights"),
        ("--data.filters.teachers=[]", "teachers"),
        ("--data.batches.order_seed=-1", "order_seed"),
        ("--data.encoding.cache_dir=/dev/null", "/dev/null"),
        ("--data.encoding.cache_dir=r.parquet", "r.parquet"),
        ("--data.rationales=[]", "data.rationales"),
        ('--data.rationales=["models"]', "models"),
        ('--data.logits=["r.parquet"]', "r.parquet"),
        ("--model.loss.divergence=nope", "divergence"),
        ("--model.loss.kl_weight={shape: linear}", "kl_weight"),
        ("--model.adapter.r=0", "adapter"),
        ("--model.adapter.r=99999999", "model.adapter.r=99999999: the layers of models/student have ranks up to 16"),
        ("--trainer.detect_anomaly=7", "detect_anomaly"),
        ("--trainer.strategy=fsdp2", "there is one"),
        ("--model.adapter={r: 8, target_modules: [nope]}", "nope"),
        ("--model.compile=maybe", "compile"),
        ("--model.head_chunk=0", "head_chunk"),
        ("--run.root=r.parquet", "r.parquet"),
        ("--run.root=" + "x" * 300, "choose another place"),
        ("--run.root=a\0b", "choose another place"),
        ("--run.root=~/runs", f"~ stays as it is here; write {Path.home()}/runs/bench/run"),
        ("--run.id=" + "y" * 300, "run.id"),
        ("--run.checkpoint_steps=0", "checkpoint_steps"),
        ("--run.project=a/b", "run.project: 'a/b' is no project of W&B"),
        ("--throughput.peak_flops=-1", "peak_flops"),
        ("--throughput.peak_flops=.nan", "peak_flops"),
    ],
)
def test_a_setting_of_fit_is_wrong(bench, option: str, named: str) -> None:
    assert named in bench.refuse("fit", option)


@pytest.mark.parametrize(
    ("callback", "named"),
    [
        ({"class_path": "EarlyStopping", "init_args": {"monitor": "nope"}}, "EarlyStopping monitors 'nope'"),
        ({"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}, "does not log; it logs train/gradient"),
        ({"class_path": "ModelCheckpoint", "init_args": {"monitor": "nope"}}, "ModelCheckpoint monitors 'nope'"),
        ({"class_path": "LearningRateFinder"}, "LearningRateFinder"),
        ({"class_path": "BatchSizeFinder"}, "BatchSizeFinder"),
    ],
    ids=str,
)
def test_a_callback_does_not_go_with_the_run(bench, callback: dict, named: str) -> None:
    assert named in bench.refuse("fit", f"--trainer.callbacks={json.dumps([callback])}")


def test_a_callback_waits_for_what_is_logged(bench) -> None:
    watch = [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/divergence_answer"}}]
    bench.run("fit", "--data.validation.fraction=0.25", f"--trainer.callbacks={json.dumps(watch)}")
    alone = ["--data.supervision=label", "--model.loss.kl_weight=0", "--data.logits=null", "--data.rationales=null"]
    watch[0]["init_args"] = {"monitor": "train/ce_rationale", "check_on_train_epoch_end": True}
    line = bench.refuse("fit", *alone, "--run.id=other", f"--trainer.callbacks={json.dumps(watch)}")
    assert "train/ce_answer" in line


# Nested deeper than the reader in C can follow: it would end the process.

DEEP = {"flow": "[" * 100_000, "block": "- " * 50_000 + "x"}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("option", ["model", "data", "trainer", "model.loss", "data.rationales", "run"])
def test_a_setting_is_nested_too_deep(bench, option: str, text: str) -> None:
    (bench.folder / "x.yaml").write_text(text)
    if option != "data.rationales":
        assert "nested deeper than 100" in bench.refuse("fit", f"--{option}=x.yaml")
    assert "nested deeper than 100" in bench.refuse("fit", f"--{option}={text}")


# Where the output is to be.


@pytest.mark.parametrize("stage", ["annotate", "cache_logits", "evaluate"])
@pytest.mark.parametrize(
    "output",
    [
        *("", "/", ".", "..", "out/..", "models", "/proc/x.parquet", "/dev/null/x", "a\0b", "x" * 300, "/a" * 3000),
        *("new/../models/x", "~/x.parquet"),
    ],
)
def test_nothing_can_be_written_there(bench, stage: str, output: str) -> None:
    line = bench.refuse(stage, f"--output={output}")
    assert len(line) < 400


@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
@pytest.mark.parametrize("output", ["out/r", "out/r.PARQUET", "out/r.jsonl"])
def test_a_table_has_a_name_that_the_next_stage_reads(bench, stage: str, output: str) -> None:
    assert f"{output}: name an output that ends in .parquet" in bench.refuse(stage, f"--output={output}")


@pytest.mark.parametrize("stage", ["annotate", "cache_logits", "evaluate"])
@pytest.mark.parametrize("option", ["--trainer.limit_predict_batches=0", "--trainer.limit_predict_batches=2.5"])
def test_a_limit_leaves_nothing_to_predict(bench, stage: str, option: str) -> None:
    line = bench.refuse(stage, option)
    assert "limit_predict_batches" in line or "2.5" in line


@pytest.mark.parametrize(
    "option",
    [
        "--model.max_new_tokens=0",
        "--model.max_new_tokens=1e9",
        "--model.num_samples=0",
        "--model.backend=OpenAIBackend",
        "--model.backend={}",
        "--model.keep_layers=[]",
        "--model.keep_layers=[99]",
        "--model.dtype=int8",
        "--model",
        "--model=3",
        "--data=null",
        "stray",
        "--data.questions=",
        "--data.questions=[]",
        "--data.questions=/etc",
        "--data.questions=/dev/null",
        "--data.rewrites_of=teacher",
    ],
)
def test_a_setting_of_annotate_is_wrong(bench, option: str) -> None:
    bench.refuse("annotate", option)


@pytest.mark.parametrize(
    "option",
    [
        "--rows_per_shard=0",
        "--model.top_k=0",
        "--model.kind=nope",
        "--model.mass=2",
        "--model.temperatures=[]",
        "--model.temperatures=[1,1]",
        "--model.draws=0",
        "--model.values=int4",
        "--trainer.strategy=fsdp2",
    ],
)
def test_a_setting_of_cache_logits_is_wrong(bench, option: str) -> None:
    assert option.removeprefix("--").split("=")[0].rpartition(".")[2] in bench.refuse("cache_logits", option)


@pytest.mark.parametrize(
    "option",
    [
        "--model.max_new_tokens=0",
        "--bert_model=",
        "--model.seed=-1",
        "--wandb.samples=0",
        "--wandb.project=a/b",
        "--model.keep_layers=[0,0]",
    ],
)
def test_a_setting_of_evaluate_is_wrong(bench, option: str) -> None:
    bench.refuse("evaluate", option)


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://", "http://a\0b/v1", "http://x:99999/v1", "http://[::1/v1"])
def test_an_endpoints_address_is_none(bench, url: str) -> None:
    pytest.importorskip("openai", reason="the extra openai is not installed")
    bench.refuse("annotate", "--model.backend=OpenAIBackend", f"--model.backend.base_url={url}")


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_a_strategy_that_would_not_shard_is_refused(bench, strategy: str) -> None:
    for stage, option in (("annotate", "use ddp, or spread one with VLLMBackend"), ("evaluate", "use ddp, or load it")):
        options = [f"--trainer.strategy={strategy}", "--trainer.accelerator=cpu"]
        said = bench.refuse(stage, *options)
        assert "fsdp" in said if strategy == "fsdp" else option in said


def test_a_run_goes_on_as_the_other_ended_or_not_at_all(bench):
    steps = ["--trainer.max_epochs=-1", "--trainer.max_steps=1"]
    bench.run("fit", *steps, "--run.keep_checkpoints=true", "--model.schedule_steps=2")
    bench.run("fit", *steps, "--run.id=short", "--run.keep_checkpoints=true")
    continued = ["--run.id=more", *steps, "--trainer.max_steps=2"]
    goes_on = [*continued, "--run.continues=runs/bench/run", "--model.schedule_steps=2"]
    said = bench.refuse("fit", *goes_on, "--model.learning_rate=0.5")
    assert said.endswith("runs/bench/run has model.learning_rate 0.0001, with which it goes on, not 0.5")
    assert "has model.student 'models/student', with" in bench.refuse("fit", *goes_on, "--model.student=models/teacher")
    assert "has model.schedule_steps 2, with which" in bench.refuse("fit", *goes_on, "--model.schedule_steps=3")
    said = bench.refuse("fit", *continued, "--run.continues=runs/bench/short")
    assert "the schedule of runs/bench/short ended with it; train both with model.schedule_steps" in said
    for wrong in (["--trainer.max_steps=1"], ["--trainer.max_epochs=3", "--trainer.max_steps=-1"]):
        assert "runs/bench/run ended after 1 steps, which count; set" in bench.refuse("fit", *goes_on, *wrong)
    bench.run("fit", *goes_on)
