"""What trains on-policy: adapters, several processes, arms of a study; and TRL's step as the oracle."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.batches.packing import pad_rows
from datamodules.files.parsing import read_json_object
from scripts import fit, on_policy
from scripts import study as study_script
from scripts.common.stages import MAINS
from scripts.common.study_plan import check_plan, claim_rounds
from studies.jobs.job import drop_spent
from tests.halting.process import PATIENCE
from tests.scripts.on_policy.small_rounds import QUESTIONS, QUIET, read_metrics, run_rounds, write_config
from tests.scripts.pipeline import MODELS, spawn


def read_card(run: str) -> dict[str, Any]:
    """Returns the facts of a student's model card."""
    return json.loads(Path(run, "student", "README.md").read_text().split("```json\n")[1].split("\n```\n")[0])


def test_an_adapter_goes_on_from_round_to_round(inside) -> None:
    args = write_config(mix=0.0, keep_rounds=1)
    content = yaml.safe_load(Path("c.yaml").read_text())
    content["fit"]["model"]["adapter"] = {"r": 2, "dropout": 0.0}
    Path("c.yaml").write_text(yaml.safe_dump(content))
    run_rounds(args)
    first, second = (read_metrics(f"runs/opd/round-{number}") for number in (1, 2))
    # Who wrote in the second round is who goes on learning, with what the adapter has become.
    assert abs(second[0]["train/own_staleness"]) < 1e-6 < first[1]["train/own_staleness"]
    assert second[0]["step"] == 2 and second[0]["train/own_loss"] != first[0]["train/own_loss"]
    # Nobody's text was learnt from but the student's own, which a teacher read.
    assert read_card("runs/opd/round-2")["teachers"] == ["a-teacher"]


@pytest.mark.slow
def test_two_processes_learn_from_the_students_text_what_one_does(whole, tmp_path, monkeypatch) -> None:
    shutil.copytree(whole, tmp_path / "rounds")
    monkeypatch.chdir(tmp_path / "rounds")
    [job] = [job for job in on_policy.parse(write_config()).jobs() if job.name == "fit-round-1"]
    both = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--run.id=both"]
    process = spawn("fit", [*job.args, *both], tmp_path / "rounds")
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    found, wanted = read_metrics("runs/opd/both"), read_metrics("runs/opd/round-1")
    for name in ("loss", "own_loss", "own_staleness", "own_teacher_mass_on_top_16", "gradient_norm", "own_length"):
        ours, theirs = ([line[f"train/{name}"] for line in lines] for lines in (found, wanted))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), name


def test_rounds_are_an_arm_of_a_study(inside, capsys) -> None:
    study = {
        "name": "s",
        "tasks": {"microworld": {"train": QUESTIONS, "test": ["microworld:test:4:0"]}},
        "students": {"a": {"model": f"{MODELS}/a-student", "family": "a"}},
        "teachers": {"b": {"model": f"{MODELS}/b-teacher", "family": "b"}},
        "supervisions": ["rationale", "on-policy"],
        "alignment": "strict",
        "seeds": 1,
    }
    evaluate = {"model": {"student": "s", "max_new_tokens": 8}, "data": {"questions": "q", "prompt": "plain"}}
    evaluate["data"]["encoding"] = {"max_length": 320}
    evaluate |= {"trainer": QUIET, "output": "o"}
    args = write_config(keep_rounds=1, start="rationale")
    content = yaml.safe_load(Path("c.yaml").read_text()) | {"study": study, "evaluate": evaluate}
    Path("c.yaml").write_text(yaml.safe_dump(content | {"on_policy": content["on_policy"] | {"mix": 0.0}}))
    with pytest.raises(ValueError, match=r"^on_policy\.mix=0 leaves a student no teacher's text, on which its files"):
        plan = study_script.parse([*args, "--quantization=[none, Q8_0]"])
        check_plan(plan, plan.jobs())
    Path("c.yaml").write_text(yaml.safe_dump(content | {"on_policy": content["on_policy"] | {"questions": 13}}))
    with pytest.raises(
        ValueError, match=r"^on_policy\.questions=13 in a round, but microworld:train:12:0 has 12; lower"
    ):
        plan = study_script.parse(args)
        check_plan(plan, plan.jobs())
    Path("c.yaml").write_text(yaml.safe_dump(content))
    study_script.main(["run", "--dry-run", *args])
    assert "| a-on-policy-b-seed0 " in capsys.readouterr().out
    plan = study_script.parse(args)
    check_plan(plan, plan.jobs())
    claim_rounds(plan)
    for job in (jobs := plan.jobs())[:-1]:
        MAINS[job.stage](job.args)
        drop_spent(jobs)
    study_script.main(["analyze", *args])
    assert "| on-policy-b |" in capsys.readouterr().out
    assert not Path("runs/s/rounds/a-on-policy-b-seed0/round-1/checkpoints").exists()
    lines = read_metrics("runs/s/a-on-policy-b-seed0")
    assert [line["step"] for line in lines] == [2, 3] and "train/own_loss" in lines[0]
    # It begins from what the text alone has taught, with steps of its own.
    first = read_metrics("runs/s/rounds/a-on-policy-b-seed0/round-1")
    assert [line["step"] for line in first] == [0, 1] and abs(first[0]["train/own_staleness"]) < 1e-6
    meta = read_json_object(Path("runs/s/rounds/a-on-policy-b-seed0/round-1/meta.json"))
    assert meta["config"]["model"]["student"] == "runs/s/a-rationale-b-seed0/student"
    card = read_card("runs/s/a-on-policy-b-seed0")
    assert (card["base"], card["teachers"]) == ("a-student", ["b-teacher"])
    for name, began, value in (("temperature", 1.0, 0.5), ("mix", 0.25, 0.5), ("start", "rationale", None)):
        changed = {"on_policy": content["on_policy"] | {name: value}}
        Path("c.yaml").write_text(yaml.safe_dump(content | changed))
        for command in ("run", "jobs"):
            with pytest.raises(
                ValueError, match=rf"-seed0: .*: on_policy\.{name} was {began!r} and is {value!r}; choose"
            ):
                study_script.main([command, *args])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_step_is_trls(inside) -> None:
    trl = pytest.importorskip("trl", reason="needs the extra `peers`")
    args = write_config(rounds=1, keep_rounds=1, mix=0.0)
    content = yaml.safe_load(Path("c.yaml").read_text())
    content["cache_logits"]["model"] = {"teacher": f"{MODELS}/a-teacher", "kind": "hidden", "values": "float32"}
    content["fit"]["trainer"]["max_steps"] = 1
    content["fit"]["data"]["batches"] = {"tokens_per_step": 100_000, "tokens_per_batch": 300}
    Path("c.yaml").write_text(yaml.safe_dump(content))
    plan = run_rounds(args)
    [logged] = read_metrics("runs/opd/round-1")
    data = fit.parse(plan.jobs()[-1].args).datamodule
    data.setup("fit")
    examples = data.own_examples.examples
    prompts = [example.token_ids[: example.num_prompt_tokens] for example in examples]
    completions = [example.token_ids[example.num_prompt_tokens :] for example in examples]
    inputs = {
        "prompt_ids": pad_rows(prompts, 0, left=True),
        "prompt_mask": pad_rows([np.ones_like(row) for row in prompts], 0, left=True),
        "completion_ids": pad_rows(completions, 0),
        "completion_mask": pad_rows([np.ones_like(row) for row in completions], 0),
    }
    settings = trl.DistillationConfig(
        "trl", beta=1.0, temperature=1.0, use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False
    )
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32) for name in ("a-student", "a-teacher")
    )
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "a-student", pad_token="<pad>")
    questions = Dataset.from_dict({"prompt": ["a", "b"]})
    trainer = trl.DistillationTrainer(student, teacher, settings, train_dataset=questions, processing_class=tokenizer)
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([own.grad for own in student.parameters() if own.grad is not None])
    assert logged["train/own_loss"] == logged["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged["train/gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
