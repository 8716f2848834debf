"""The likelihood of options is that of lm-evaluation-harness itself: SmolLM2 on real OpenBookQA questions."""

import json
import warnings
from pathlib import Path

import lightning as L
import pytest
import yaml

from datamodules.evaluation import EvaluationDataModule, OptionText
from datamodules.examples.tokenization import load_tokenizer
from lightning_modules.evaluation.evaluator import Evaluator
from lightning_modules.evaluation.metrics import measure
from lightning_modules.model.pretrained import load_causal_lm
from tests.tiny import TRAINER, build

pytestmark = [pytest.mark.slow, pytest.mark.smollm2]
HARNESS_METRICS = ("acc", "acc_norm", "acc_bytes")


def save_student(gguf: str, folder: Path, is_chat: bool) -> str:
    """Saves the weights as a folder, with or without the tokenizer's chat template."""
    tokenizer = load_tokenizer(gguf)
    assert tokenizer.chat_template
    if not is_chat:
        tokenizer.chat_template = None
    load_causal_lm(gguf).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def ask_harness(student: str, data: EvaluationDataModule, folder: Path) -> tuple[dict, dict[str, list[float]]]:
    """Returns lm-evaluation-harness's metrics, and each question's log-likelihoods, of the very same prompts."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    is_chat = bool(data.tokenizer.chat_template)
    with (folder / "questions.jsonl").open("w") as file:
        for identifier, posed in data.posed.items():
            document = {
                "id": identifier,
                "prompt": posed.text if is_chat else posed.text.removesuffix("\n"),
                "options": data.options[identifier].texts,
                "gold": posed.question.letters.index(posed.question.gold),
            }
            file.write(json.dumps(document) + "\n")
    task = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}, "cache_dir": str(folder)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "target_delimiter": "" if is_chat else " ",
        "metric_list": [{"metric": name} for name in HARNESS_METRICS],
    }
    (folder / "ours.yaml").write_text(yaml.safe_dump(task))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": student, "dtype": "float32", "device": "cpu"},
            tasks=["ours"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            batch_size=8,
            bootstrap_iters=0,
        )
    scores = {
        sample["doc"]["id"]: [response[0] for response in sample["filtered_resps"]]
        for sample in results["samples"]["ours"]
    }
    return {name: results["results"]["ours"][f"{name},none"] for name in HARNESS_METRICS}, scores


@pytest.mark.parametrize(
    ("is_chat", "option_text", "number"), [(False, "choice", 16), (True, "choice", 8), (False, "letter", 8)]
)
def test_options_have_the_harness_likelihoods(
    gguf: str, shared_data: Path, tmp_path: Path, is_chat: bool, option_text: OptionText, number: int
) -> None:
    student = save_student(gguf, tmp_path / "student", is_chat)
    data = build(
        EvaluationDataModule,
        student,
        str(shared_data / "obqa_test.jsonl.gz"),
        option_text,
        prompt="direct",
        limit=number,
    )
    data.setup("predict")
    batches = L.Trainer(**TRAINER).predict(Evaluator(student, max_new_tokens=1), data)
    records = [record for batch in batches for record in batch]
    metrics, scores = ask_harness(student, data, tmp_path)
    assert len(scores) == number == len(records)
    for record in records:
        assert record["option_log_likelihoods"] == pytest.approx(scores[record["question_id"]], abs=1e-4)
    own = measure(records)["obqa"]
    assert {name: own[name].value for name in HARNESS_METRICS} == pytest.approx(metrics)
