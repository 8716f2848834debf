"""Tests of what a study is said to take: formulas and plans against real small runs."""

import json
from pathlib import Path

import pytest

from datamodules.logit_cache.reader import LogitCache
from scripts import study
from scripts.common.dry_run import parse_dry_run
from scripts.common.stages import STAGES
from studies.design.cost import (
    Device,
    cache_row_bytes,
    checkpoint_bytes,
    count_parameters,
    weights_bytes,
)
from studies.jobs.estimate import (
    Assumptions,
    estimate_annotation,
    estimate_cache,
    estimate_evaluation,
    estimate_training,
)
from tests.scripts.pipeline import COMMANDS, MODELS, ROOT, read_jsonl

ASSUMED = Assumptions(Device(1e12, 1e11, 0.5), prompt_tokens=100, rationale_tokens=20)


def test_a_student_and_its_checkpoint_have_the_bytes_of_the_formulas(inside):
    parameters = count_parameters(str(MODELS / "a-student"))
    size = Path("runs/g/r/student/model.safetensors").stat().st_size
    # The rest are headers.
    assert weights_bytes(parameters, "float32") == pytest.approx(size, rel=0.01)
    size = Path("runs/g/r/checkpoints/last.ckpt").stat().st_size
    assert checkpoint_bytes(parameters, "float32") == pytest.approx(size, rel=0.05)
    assert count_parameters(str(MODELS / "a-student"), [0]) < parameters


def test_a_cache_has_the_bytes_of_its_planes(inside):
    cache = LogitCache(Path("teacher/logits"))
    size = sum(file.stat().st_size for file in Path("teacher/logits").glob("shard-*"))
    # Beside the planes lie a header and the examples' index.
    planes = cache.num_rows * cache_row_bytes(cache.description, width=0)
    assert planes <= size <= planes + 4096 + 200 * len(cache)


def test_a_trainings_plan_is_the_one_that_it_follows(inside):
    work = estimate_training(STAGES["fit"].parse(COMMANDS["fit"]), ASSUMED)
    done = json.loads(Path("runs/g/r/DONE").read_text())
    last = read_jsonl(Path("runs/g/r/metrics.jsonl"))
    seen = [record["speed/tokens_seen"] for record in last if "speed/tokens_seen" in record]
    assert (work.examples, work.steps, work.tokens) == (done["train_examples"], done["global_step"], seen[-1])
    parameters = count_parameters(str(MODELS / "a-student"))
    assert work.hours == pytest.approx(6 * parameters * work.tokens / 0.5e12 / 3600)
    # COMMANDS keeps the checkpoints.
    assert (work.kept, work.meanwhile) == (4 * parameters + 24 * parameters, 0)
    dropped = estimate_training(STAGES["fit"].parse([*COMMANDS["fit"], "--run.keep_checkpoints=false"]), ASSUMED)
    assert (dropped.kept, dropped.meanwhile) == (4 * parameters, 24 * parameters)


def test_rationales_that_are_not_written_are_assumed(inside):
    missing = ['--data.rationales=["none.parquet"]', '--data.logits=["none"]']
    work = estimate_training(STAGES["fit"].parse([*COMMANDS["fit"], *missing, "--run.id=new"]), ASSUMED)
    done = json.loads(Path("runs/g/r/DONE").read_text())
    assert work.examples == done["train_examples"] and work.steps > 0


def test_a_caches_tokens_are_those_that_it_holds(inside):
    work, cache = (
        estimate_cache(STAGES["cache_logits"].parse(COMMANDS["cache_logits"]), ASSUMED),
        LogitCache(Path("teacher/logits")),
    )
    assert work.examples == len(cache)
    assert work.kept == cache.num_rows * cache_row_bytes(cache.description, width=0)


def test_asking_reads_prompts_and_writes_what_is_assumed(inside):
    asked = estimate_annotation(STAGES["annotate"].parse([*COMMANDS["annotate"]]), ASSUMED)
    twice = ["--model.num_samples=2", "--model.temperature=1"]
    both = estimate_annotation(STAGES["annotate"].parse([*COMMANDS["annotate"], *twice]), ASSUMED)
    assert asked.examples == 8 and asked.tokens > 8 * 20 and both.tokens == 2 * asked.tokens
    answered = estimate_evaluation(
        STAGES["evaluate"].parse(COMMANDS["evaluate"]), str(MODELS / "a-student"), None, ASSUMED
    )
    assert answered.examples == 6 and answered.hours > 0
    # What answers are compared with may be yet to be written, and does not count.
    more = [*COMMANDS["evaluate"], '--data.references=["nowhere.parquet"]', '--data.logits=["nowhere"]']
    assert estimate_evaluation(STAGES["evaluate"].parse(more), str(MODELS / "a-student"), None, ASSUMED) == answered


def test_assumptions_are_of_something():
    with pytest.raises(ValueError, match="must be at least 1"):
        parse_dry_run(["--rationale_tokens=0"])


def test_a_study_of_a_pair_is_estimated_without_a_network(inside, capsys):
    before = {*inside.rglob("*")}
    study.main(["run", f"--config={ROOT}/configs/experiments/pair_qwen2.5.yaml", "--dry-run", "--seeds=1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 9 and "GPU hours" in lines[0]
    [rationale] = [line for line in lines if "rationale-teacher" in line]
    # 4,957 questions, a twentieth held out; 270 tokens each, three epochs.
    assert "4,709" in rationale and f"{4709 * 270 * 3:,}" in rationale and "2 GB" in rationale and "12 GB" in rationale
    assert {*inside.rglob("*")} == before
