"""All five stages on real OpenBookQA questions, with real weights: the shipped experiment, cut to minutes."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import read_metadata
from tests.scripts.pipeline import run_study

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def study(gguf: str, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the experiment's study on 4 questions, and its table; the student has every second layer."""
    folder = tmp_path_factory.mktemp("smollm2")
    content = yaml.safe_load((ROOT / "configs/experiments/obqa_smollm2.yaml").read_text())
    content["study"] |= {
        "tasks": {
            "obqa": {
                "train": str(shared_data / "obqa_train.jsonl.gz"),
                "test": [str(shared_data / "obqa_valid.jsonl.gz")],
            }
        },
        "supervisions": ["rationale", "rationale+logits"],
    }
    content["study"]["students"]["smollm2"] |= {"model": gguf, "keep_layers": list(range(0, 30, 2))}
    content["study"]["teachers"]["smollm2"]["model"] = gguf
    content["study"]["teachers"]["gpt-4o"]["rationales"] = str(shared_data / "obqa_train.jsonl.gz")
    for stage in ("annotate", "cache_logits", "fit", "evaluate"):
        content[stage]["data"]["limit"] = 4
    for stage in ("annotate", "evaluate"):
        content[stage]["model"]["max_new_tokens"] = 12
    for stage in ("cache_logits", "fit"):
        # So few tokens seldom reach an answer.
        content[stage]["data"]["filters"] = {"correct_only": False, "keep_truncated": True}
    content["fit"]["trainer"]["max_epochs"] = 1
    run_study(folder, content)
    for checkpoints in folder.rglob("checkpoints"):
        shutil.rmtree(checkpoints)
    runs = folder / "runs" / "obqa_smollm2"
    return runs, (runs / "table.md").read_text()


ARMS = ("untuned", "rationale-gpt-4o", "rationale-smollm2", "rationale+logits-smollm2")


def test_teacher_answered_the_questions(study, gguf):
    path = study[0] / "teachers" / "smollm2" / "obqa.parquet"
    records = pq.read_table(path).to_pylist()
    assert len(records) == 4
    assert {(record["teacher"], record["family"]) for record in records} == {(Path(gguf).stem, "smollm2")}
    assert all(record["text"].strip() and record["prompt_id"].startswith("cot-") for record in records)
    assert read_metadata(path)["decoding"]["max_new_tokens"] == 12


def test_teacher_scored_its_rationales(study):
    cache = LogitCache(study[0] / "teachers" / "smollm2" / "obqa-logits")
    assert len(cache) == 4 and cache.description.sparsity.top_k == 64
    assert cache.description.prompt_id.startswith("instruction-")


@pytest.mark.parametrize("arm", ARMS[1:])
def test_student_learned(study, arm):
    run = study[0] / f"smollm2-{arm}-seed0"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics and all(0 < record["train/loss"] < 20 for record in metrics if "train/loss" in record)
    assert ("train/divergence_answer" in metrics[0]) == ("logits" in arm)
    assert json.loads((run / "DONE").read_text())["train_examples"] == 4
    assert json.loads((run / "student" / "config.json").read_text())["num_hidden_layers"] == 15


@pytest.mark.parametrize("arm", ARMS)
def test_student_was_evaluated(study, arm):
    records = pq.read_table(study[0] / "predictions" / f"smollm2-{arm}-seed0.parquet").to_pylist()
    assert len(records) == 4
    assert all(len(record["option_log_likelihoods"]) == 4 and record["gold"] in "ABCD" for record in records)


def test_table_has_every_arm(study):
    for arm in ARMS:
        assert re.search(rf"\| {re.escape(arm)} +\| ", study[1])
    cells = json.loads((study[0] / "results.json").read_text())["cells"]
    assert {(cell["condition"], cell["student"]) for cell in cells} == {(arm, "smollm2") for arm in ARMS}
