"""Rounds of a student and a teacher that are only named."""

from typing import Any

from studies.design.rounds import OnPolicy
from studies.jobs.rounds import RoundsPlan

SECTIONS: dict[str, Any] = {
    "cache_logits": {"model": {"teacher": "t"}, "data": {"filters": {"correct_only": True, "teachers": ["t"]}}},
    "fit": {
        "model": {"student": "s", "keep_layers": [0, 1]},
        "data": {"questions": "q", "prompt": "plain", "encoding": {"max_length": 400, "cache_dir": "d"}},
        "trainer": {"max_steps": 12},
    },
    "evaluate": {},
}


def make_plan(sections: dict[str, Any] = SECTIONS, **settings: Any) -> RoundsPlan:
    return RoundsPlan(OnPolicy(**{"name": "n", "rounds": 4, "questions": 8, **settings}), sections, ["--config=c"])
