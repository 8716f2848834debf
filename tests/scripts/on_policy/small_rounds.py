"""Rounds as small as they can be, and how the tests run them."""

from pathlib import Path
from typing import Any

import yaml

from scripts import on_policy
from scripts.common.stages import MAINS
from tests.scripts.pipeline import MODELS, read_jsonl

QUIET = {"enable_progress_bar": False}
QUESTIONS = "microworld:train:12:0"
CONFIG: dict[str, Any] = {
    "on_policy": {"name": "opd", "rounds": 2, "questions": 4, "max_new_tokens": 24, "max_lost": 1.0, "keep_rounds": 2},
    "annotate": {
        "model": {"teacher": f"{MODELS}/a-teacher", "family": "a", "max_new_tokens": 96},
        "data": {"questions": QUESTIONS, "prompt": "plain", "encoding": {"max_length": 320}},
        "trainer": QUIET,
        "output": "teacher/rationales.parquet",
    },
    "cache_logits": {
        "model": {"teacher": f"{MODELS}/a-teacher", "top_k": 8},
        "data": {
            "questions": QUESTIONS,
            "rationales": ["teacher/rationales.parquet"],
            "prompt": "plain",
            "encoding": {"max_length": 400},
        },
        "trainer": QUIET,
        "output": "teacher/logits",
    },
    "fit": {
        "model": {"student": f"{MODELS}/a-student", "learning_rate": 1e-3, "loss": {"kl_weight": 0.5}},
        "data": {
            "questions": QUESTIONS,
            "rationales": ["teacher/rationales.parquet"],
            "supervision": "rationale+logits",
            "logits": ["teacher/logits"],
            "prompt": "plain",
            "encoding": {"max_length": 400},
            "batches": {"tokens_per_step": 600, "tokens_per_batch": 400},
        },
        "trainer": {"max_steps": 4, **QUIET},
        "run": {"checkpoint_steps": 1},
    },
}


def write_config(**changes: Any) -> list[str]:
    Path("c.yaml").write_text(yaml.safe_dump(CONFIG | {"on_policy": CONFIG["on_policy"] | changes}))
    return ["--config=c.yaml"]


def run_rounds(args: list[str]) -> on_policy.RoundsPlan:
    """Runs the jobs one after the other in this process, as `run` does in another."""
    plan = on_policy.parse(args)
    plan.claim()
    for job in plan.jobs():
        MAINS[job.stage](job.args)
    return plan


def read_metrics(run: str) -> list[dict]:
    """Returns what a run logged, but for how fast it was."""
    lines = read_jsonl(Path(run) / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]
