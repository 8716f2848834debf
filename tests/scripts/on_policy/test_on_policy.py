"""Rounds of on-policy distillation, on the embedded default: the stages themselves, killed and continued."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.examples.tokenization import encode_prompt
from datamodules.files.tables import read_table
from datamodules.rationales.store import load_rationales, write_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import load_questions
from lightning_modules.student.student import DistillationModule
from scripts import fit, on_policy
from scripts.common.stages import MAINS
from tests.halting.process import wait_until
from tests.scripts.on_policy.small_rounds import CONFIG, QUESTIONS, QUIET, read_metrics, run_rounds, write_config
from tests.scripts.pipeline import MODELS, spawn


def test_a_round_logs_what_the_student_wrote_and_how_it_learns_from_it(whole, monkeypatch, capsys) -> None:
    monkeypatch.chdir(whole)
    first, second = (read_metrics(f"runs/opd/round-{number}") for number in (1, 2))
    assert [line["step"] for line in (*first, *second)] == [0, 1, 2, 3]
    names = {name.removeprefix("train/own_") for name in first[0] if name.startswith("train/own_")}
    assert {"loss", "length", "truncated", "empty", "distinct_4", "accuracy"} <= names
    assert {"staleness", "agreement", "teacher_mass_on_top_16", "student_entropy", "divergence"} <= names
    # At the first step the student is who wrote, but for rounding; then it is another.
    assert abs(first[0]["train/own_staleness"]) < 1e-6 < first[1]["train/own_staleness"]
    assert 0 < first[0]["train/own_teacher_mass_on_top_16"] <= 1
    # The schedule is one over all steps.
    rates = [line["train/learning_rate"] for line in (*first, *second)]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(1e-3)
    on_policy.main(["status", "--config=c.yaml"])
    shown = capsys.readouterr().out
    assert "runs/opd: 8 jobs: 8 done" in shown and "| 2     | 2 " in shown


def test_the_ids_are_those_that_were_drawn(whole) -> None:
    rounds = [read_table(whole / f"runs/opd/samples/round-{number}.parquet").to_pylist() for number in (1, 2)]
    assert not {row["question_id"] for row in rounds[0]} & {row["question_id"] for row in rounds[1]}
    end = AutoTokenizer.from_pretrained(MODELS / "a-student").eos_token_id
    for row in (*rounds[0], *rounds[1]):
        assert len(row["token_ids"]) == len(row["log_probs"]) == row["num_completion_tokens"]
        assert (row["token_ids"][-1] == end) == (row["finish_reason"] == "stop")


def train_on_the_samples(settings: dict, *more: str) -> tuple[dict, Any]:
    """Trains a round on samples of the rounds that ran; returns what its first step logged, and its data."""
    plan = on_policy.parse(write_config(**{"rounds": 1, "keep_rounds": 1, **settings}))
    plan.claim()
    shutil.copytree("runs/opd/samples", plan.folder / "samples", ignore=shutil.ignore_patterns("*-logits"))
    *caches, train = plan.round(1, [])[1:]
    for job in caches:
        MAINS["cache_logits"]([*job.args, *more])
    # One step holds all of them.
    args = [*train.args, "--trainer.max_steps=1", "--data.batches.tokens_per_step=5000"]
    MAINS["fit"](args)
    data = fit.parse(args).datamodule
    data.setup("fit")
    return read_metrics(str(plan.folder / "round-1"))[0], data


def test_a_teacher_of_the_drawn_tokens_alone_teaches(whole, monkeypatch) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    # The teacher's text has distributions.
    logged, data = train_on_the_samples({"name": "labels"}, "--model.kind=labels", "--model.top_k=null")
    own = data.own_examples
    gaps = [
        own.log_probs[example.id] - own.cache_of_example[example.id].read(example)["label_log_prob"]
        for example in own.examples
    ]
    assert logged["train/own_divergence"] == pytest.approx(np.concatenate(gaps).mean(), rel=1e-4)
    assert logged["train/own_loss"] == pytest.approx(logged["train/own_divergence"])
    assert logged["train/own_importance_weight"] == pytest.approx(1, abs=1e-5) and logged["train/own_clipped"] == 0
    assert "train/own_agreement" not in logged and logged["train/gradient_norm"] > 0


def test_several_teachers_teach_by_weight(whole, monkeypatch) -> None:
    monkeypatch.chdir(whole)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    teachers = {f"{MODELS}/a-teacher": 1.0, f"{MODELS}/a-student": 3.0}
    logged, data = train_on_the_samples({"name": "several", "teachers": teachers})
    mixtures = {id(mixture): mixture for mixture in data.own_examples.cache_of_example.values()}
    [mixture] = mixtures.values()
    assert sorted(mixture.weights) == [0.25, 0.75] and len(data.own_examples.caches) == 2
    # Three quarters of it are the student itself.
    alone = read_metrics("runs/opd/round-1")[0]["train/own_divergence"]
    assert 0 < logged["train/own_divergence"] < alone / 2


def test_a_student_that_sees_the_gold_answer_teaches_the_one_that_does_not(inside) -> None:
    settings = {"name": "self", "teacher": "self", "teacher_prompt": "with_gold", "mix": 0.0, "max_new_tokens": 16}
    plan = run_rounds(write_config(**settings))
    args = plan.jobs()[-1].args
    data = fit.parse(args).datamodule
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "a-student")
    questions = {question.id: question for question in load_questions(QUESTIONS)}
    # Each round's reader is the student that wrote in it.
    writers = {"round-1": MODELS / "a-student", "round-2": Path("runs/self/round-1/student")}
    for example in data.own_examples.examples:
        question_id, _, rest = example.id.partition("/")
        question, writer = questions[question_id], rest.partition("/")[0]
        drawn, student_prompt = np.split(example.token_ids, [example.num_prompt_tokens])[::-1]
        _, prompt = encode_prompt(tokenizer, get_prompt("plain_with_gold", privileged=True), question)
        assert tokenizer.decode(prompt) != tokenizer.decode(student_prompt)
        model = AutoModelForCausalLM.from_pretrained(writers[writer], dtype=torch.float32)
        with torch.no_grad():
            seen, blind = (
                model(torch.tensor([[*own, *drawn]])).logits[0, len(own) - 1 : -1].log_softmax(-1).numpy()
                for own in (prompt, student_prompt)
            )
        rows = data.own_examples.cache_of_example[example.id].read(example)
        place = rows["support"].astype(int)
        # Log-probabilities are kept in 8 bits.
        assert (
            np.abs(np.exp(rows["log_probs"][..., : place.shape[1]]) - np.exp(np.take_along_axis(seen, place, 1))).max()
            < 0.02
        )
        assert np.abs(rows["label_log_prob"] - seen[np.arange(len(drawn)), drawn]).max() < 0.01
        assert np.abs(rows["label_log_prob"] - blind[np.arange(len(drawn)), drawn]).max() > 0.05
    # The fit checks after which prompt it was read.
    for other, message in (
        ("null", r"captured with prompt plain_with_gold-\w+, which showed the teacher the gold answer"),
        ("cot_with_gold", r"captured with prompt plain_with_gold-\w+, but data.own.teacher_prompt is cot_with_gold-"),
        ("plain", r"data.own.teacher_prompt 'plain' shows neither the gold answer nor a rationale"),
    ):
        with pytest.raises(ValueError, match=message):
            fit.parse([*args, f"--data.own.teacher_prompt={other}", "--run.id=other"]).datamodule.setup("fit")


def test_a_student_that_sees_a_rationale_teaches_the_one_that_does_not(inside) -> None:
    shown = "teacher/rationales.parquet"
    settings = {"name": "told", "rounds": 1, "keep_rounds": 1, "max_new_tokens": 8, "mix": 0.0, "teacher": "self"}
    plan = run_rounds(write_config(**settings, teacher_prompt="with_rationale", shown_rationales=shown))
    args = plan.jobs()[-1].args
    data = fit.parse(args).datamodule
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "a-student")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "a-student", dtype=torch.float32)
    questions = {question.id: question for question in load_questions(QUESTIONS)}
    texts = {row["question_id"]: row["text"].strip() for row in read_table(Path(shown)).to_pylist()}
    prompt = replace(get_prompt("plain_with_rationale", privileged=True), shown=texts)
    for example in data.own_examples.examples:
        student_prompt, drawn = np.split(example.token_ids, [example.num_prompt_tokens])
        told, ids = encode_prompt(tokenizer, prompt, questions[example.question_id])
        text = texts[example.question_id]
        assert text in told and text not in tokenizer.decode(student_prompt)
        with torch.no_grad():
            seen, blind = (
                model(torch.tensor([[*own, *drawn]])).logits[0, len(own) - 1 : -1].log_softmax(-1).numpy()
                for own in (ids, student_prompt)
            )
        rows = data.own_examples.cache_of_example[example.id].read(example)
        places = np.arange(len(drawn)), drawn
        assert np.abs(rows["label_log_prob"] - seen[places]).max() < 0.01
        assert np.abs(rows["label_log_prob"] - blind[places]).max() > 0.05
        # The loss is against what the student that was told thinks.
        support = rows["support"].astype(int)
        kept = np.exp(rows["log_probs"][..., : support.shape[1]])
        assert np.abs(kept - np.exp(np.take_along_axis(seen, support, 1))).max() < 0.02
    assert read_metrics("runs/told/round-1")[0]["train/own_divergence"] > 0
    # Another text of one rationale is another prompt, of whose distributions the cache has none.
    first, *others = load_rationales([shown], questions)
    write_rationales(Path("other.parquet"), [replace(first, text=f"{first.text} Indeed."), *others], {})
    message = r"captured with prompt plain_with_rationale-\w+, but .* is plain_with_rationale-\w+, with data.own.sho"
    with pytest.raises(ValueError, match=message):
        fit.parse([*args, "--data.own.shown_rationales=other.parquet", "--run.id=other"]).datamodule.setup("fit")
    write_rationales(Path("few.parquet"), others[4:], {})
    changes = {"name": "few", "teacher_prompt": "with_rationale", "shown_rationales": "few.parquet"}
    few = on_policy.parse(write_config(**{**settings, **changes}))
    with pytest.raises(ValueError, match=r"^5 of 12 questions have no rationale that prompt 'plain_with_rationale'"):
        on_policy.check_sections(few)
    [read] = [job for job in few.jobs() if job.stage == "cache_logits"]
    with pytest.raises(ValueError, match=r"^\d of 4 questions have no rationale that prompt 'plain_with_rationale'"):
        MAINS["cache_logits"]([*read.args, "--data.rationales=[runs/told/samples/round-1.parquet]"])


def check_same(folder: Path, whole: Path) -> None:
    """Compares all that rounds leave."""
    for number in (1, 2):
        run, sample = f"runs/opd/round-{number}", f"runs/opd/samples/round-{number}.parquet"
        assert read_metrics(str(folder / run)) == read_metrics(str(whole / run))
        assert read_table(folder / sample).equals(read_table(whole / sample))
        weights = "student/model.safetensors"
        assert (folder / run / weights).read_bytes() == (whole / run / weights).read_bytes()


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_that_broke_off_goes_on_to_the_same_end(whole, tmp_path, monkeypatch, number: int) -> None:
    def fail(self: DistillationModule, *args: object) -> None:
        if self.global_step == 2 * number - 1:
            raise ChildProcessError

    shutil.copytree(whole, tmp_path / "rounds")
    monkeypatch.chdir(tmp_path / "rounds")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shutil.rmtree(f"runs/opd/round-{number}")
    [job] = [job for job in on_policy.parse(write_config()).jobs() if job.name == f"fit-round-{number}"]
    with monkeypatch.context() as patch, pytest.raises(ChildProcessError):
        patch.setattr(DistillationModule, "on_train_batch_start", fail, raising=False)
        MAINS["fit"](job.args)
    MAINS["fit"](job.args)
    check_same(Path(), whole)


@pytest.mark.slow
def test_rounds_that_were_killed_end_as_if_they_had_not_been(inside, whole) -> None:
    data = {"questions": "microworld:test:4:0", "prompt": "plain", "encoding": {"max_length": 320}}
    data["batches"] = {"tokens_per_batch": 350}
    evaluate = {"model": {"student": "s", "max_new_tokens": 24}, "data": data, "trainer": QUIET, "output": "o"}
    args = write_config()
    Path("c.yaml").write_text(yaml.safe_dump(yaml.safe_load(Path("c.yaml").read_text()) | {"evaluate": evaluate}))
    jobs, done = on_policy.parse(args).jobs(), list[int]()
    for path, halt_at in (
        ("runs/opd/samples/.round-1.parquet.part-*", "open:.round-1.parquet.part-0.jsonl:2"),
        ("runs/opd/samples/round-1-logits/shard-*", "os.rename:round-1-logits/manifest.json:1"),
        ("runs/opd/round-2/meta.json", "open:round-2/metrics.jsonl:1"),
        ("runs/opd/predictions/.round-2.parquet.part-*", "open:predictions/.round-2.parquet.part-0.jsonl:3"),
    ):
        process = spawn("on_policy", ["run", *args], inside, halt_at)
        wait_until(process, lambda path=path: any(inside.glob(path)))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done.append([Path(job.done).exists() for job in jobs].index(False))
    assert [jobs[place].name for place in done] == [
        "annotate-round-1", "cache_logits-round-1", "fit-round-2", "evaluate-round-2",
    ]  # fmt: skip
    run_rounds(args)
    check_same(inside, whole)
    MAINS["evaluate"]([*jobs[-1].args, "--output=again.parquet"])
    assert read_table(Path(jobs[-1].done)).equals(read_table(Path("again.parquet")))


def test_rounds_of_a_teachers_text_alone_are_the_offline_fit(inside) -> None:
    run_rounds(write_config(mix=1.0, keep_rounds=1, max_new_tokens=256, max_lost=0.5))
    MAINS["fit"](["--config=c.yaml", "--trainer.max_epochs=-1", "--run.id=offline", "--run.group=g"])
    found, wanted = (load_file(f"runs/{run}/student/model.safetensors") for run in ("opd/round-2", "g/offline"))
    assert found.keys() == wanted.keys() and all(found[name].equal(wanted[name]) for name in wanted)
    offline = read_metrics("runs/g/offline")
    logged = [*read_metrics("runs/opd/round-1"), *read_metrics("runs/opd/round-2")]
    assert [line["train/loss"] for line in logged] == [line["train/loss"] for line in offline]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "runs/other"}, "on_policy.start: runs/other is no finished fit"),
        ({"samples": 2, "temperature": 0.0}, "on_policy.samples=2 needs on_policy.temperature above 0"),
        (
            {"name": "many", "questions": 13},
            "on_policy.questions=13 in a round, but microworld:train:12:0 has 12; lower it",
        ),
        ({"rounds": 3}, "on_policy.rounds=3 does not divide fit.trainer.max_steps=4"),
        ({"temperature": 0.5}, "on_policy.temperature was 1.0 and is 0.5; choose another name"),
        ({"loss": {"kl_weight": 0.5}}, "model.own_loss.kl_weight is 0.5, and the rest is cross-entropy"),
        ({"max_new_tokens": 400}, "on_policy.max_new_tokens=400 leaves nothing of fit.data.encoding.max_length=400"),
        ({"max_lost": 0.5}, "75% of the student's samples are truncated and 0% empty, more than data.own.max_lost=0.5"),
    ],
    ids=str,
)
def test_bad_rounds_are_refused_in_one_line(whole, monkeypatch, changes: dict, message: str) -> None:
    monkeypatch.chdir(whole)
    args = write_config(**changes)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        plan = on_policy.parse(args)
        if "questions" in changes:
            on_policy.check_sections(plan)
        if "temperature" in changes:
            plan.claim()
        MAINS["fit"]([*plan.jobs()[-1].args, "--run.id=refused"])
    assert message in str(refused.value)


def test_a_start_is_a_fit_of_the_same_student(whole, monkeypatch) -> None:
    monkeypatch.chdir(whole)
    args = write_config(name="other", start="runs/opd/round-1")
    assert "--model.teacher=runs/opd/round-1/student" in on_policy.parse(args).round(1, [])[0].args
    content = yaml.safe_load(Path("c.yaml").read_text())
    content["fit"]["model"]["student"] = f"{MODELS}/b-student"
    Path("c.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"on_policy.start: runs/opd/round-1 trained another student: .*a-student"):
        on_policy.parse(args)


def test_a_teacher_without_log_probabilities_is_refused(whole, monkeypatch) -> None:
    monkeypatch.chdir(whole)
    args = write_config()
    Path("c.yaml").write_text(yaml.safe_dump({name: own for name, own in CONFIG.items() if name != "cache_logits"}))
    with pytest.raises(ValueError, match=r"no section cache_logits: a teacher without"):
        on_policy.parse(args)
