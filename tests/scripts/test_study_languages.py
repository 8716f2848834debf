"""A study in Japanese, of the microworld, on tiny models: native rationales, English pivots, both; to the report."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from datamodules.rationales.store import Rationale, read_flat_rationales, write_rationales
from datamodules.tasks.microworld import draw_problems
from datamodules.tasks.microworld_words import get_wording, state_answer
from datamodules.tasks.questions import load_questions
from scripts import study
from scripts.common.stages import JOBS
from tests.tiny import save_model

pytestmark = pytest.mark.slow
TRAIN, TEST = "microworld:train:8:0:{language}", "microworld:test:6:0:{language}"
KINDS = ["same", "pivot", "mixed"]


def write_published(path: str, language: str) -> None:
    """Writes right rationales of the training questions in a language."""
    wording, rationales = get_wording(language), []
    questions = load_questions(TRAIN.replace("{language}", language))
    for question, problem in zip(questions, draw_problems(8, "train", 0), strict=True):
        text = problem.explain(wording, language) if wording else state_answer(problem.answer, language)
        rationales.append(
            Rationale(question.id, "microworld", "train", "sage", "tiny", 0, text, question.gold, True, "imported", "x")
        )
    write_rationales(Path(path), rationales, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the study; its jobs are run one after the other, in this process."""
    folder = tmp_path_factory.mktemp("languages")
    model = save_model(folder / "models" / "student", context=2048)
    data = {"prompt": "plain", "questions": TRAIN.replace("{language}", "ja")}
    content = {
        "study": {
            "name": "ja",
            "tasks": {"world": {"train": TRAIN, "test": [TEST]}},
            "languages": {"questions": ["ja"], "rationales": KINDS},
            "students": {"s": {"model": model, "family": "tiny"}},
            "teachers": {"sage": {"rationales": "r_{language}.parquet", "name": "sage", "family": "tiny"}},
            "supervisions": ["rationale"],
            "seeds": 1,
        },
        "fit": {
            "model": {"student": model, "learning_rate": 1e-3},
            "data": {**data, "supervision": "rationale", "batches": {"tokens_per_step": 4096}},
            "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
        },
        "evaluate": {
            "model": {"student": model, "max_new_tokens": 4},
            "data": data,
            "trainer": {"enable_progress_bar": False, "accelerator": "cpu"},
            "output": "p.parquet",
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        for language in ("ja", "en"):
            write_published(f"r_{language}.parquet", language)
        Path("tiny.yaml").write_text(yaml.safe_dump(content))
        for job in study.parse(["--config=tiny.yaml"]).jobs()[:-1]:
            JOBS[job.stage](job.args)
        study.main(["analyze", "--config=tiny.yaml"])
    return folder / "runs" / "ja"


def test_each_arm_learned_from_its_language(folder: Path) -> None:
    texts = {kind: [] for kind in KINDS}
    for kind in KINDS:
        arm = folder / f"s-world-ja-{kind}-rationale-sage-seed0"
        config = yaml.safe_load((arm / "config.yaml").read_text())["data"]
        stores = [folder.parents[1] / path for path in config["rationales"]]
        texts[kind] = [own.text for store in stores for own in read_flat_rationales(str(store))]
        assert json.loads((arm / "DONE").read_text())["train_examples"] == (16 if kind == "mixed" else 8)
        assert json.loads((arm / "meta.json").read_text())["config"]["languages"].keys() == {"ja"}
    assert all(text.endswith("です。") for text in texts["same"])
    assert all(text.startswith("The answer is ") for text in texts["pivot"])
    assert texts["mixed"] == texts["same"] + texts["pivot"]


def test_questions_are_in_japanese_and_differences_are_told(folder: Path) -> None:
    records = pq.read_table(folder / "predictions" / "s-world-ja-same-rationale-sage-seed0.parquet").to_pylist()
    assert len(records) == 6 and {record["language"] for record in records} == {"ja"}
    results = json.loads((folder / "results.json").read_text())
    told = {(row["trained_on"], row["right"]) for row in results["contrasts"] if row["kind"] == "task"}
    assert told == {(f"world-ja-{kind}", "rationale-sage after world-ja-pivot") for kind in ("same", "mixed")}
    page = (folder / "report.html").read_text()
    assert all(f"microworld/ja after world-ja-{kind}" in page for kind in KINDS)
