"""What is refused of rounds by their settings alone."""

import pytest

from losses.distillation import DistillationLoss
from tests.studies.jobs.rounds_plan import SECTIONS, make_plan

SELF = {"teacher": "self", "teacher_prompt": "with_gold"}


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            {},
            {"teacher_prompt": "with_rationale"},
            "'with_rationale' shows rationales: name their file by on_pol",
        ),
        (
            {},
            {**SELF, "shown_rationales": "r"},
            "on_policy.shown_rationales would be ignored: on_policy.teacher_pro",
        ),
        ({}, {"teacher": "self"}, "on_policy.teacher=self needs on_policy.teacher_prompt=with_gold"),
        ({}, {"teacher": "self", "teachers": {"t": 1, "u": 1}}, "on_policy.teacher is the student itself"),
        ({}, {"teacher_prompt": "with_gold", "mix": 1.0}, "on_policy.teacher_prompt would be ignored with"),
        ({"kind": "hidden"}, {**SELF, "keep_rounds": 2}, "on_policy.keep_rounds: with on_policy.teacher=self hidden"),
        ({}, {"teachers": {"t": 1}}, "on_policy.teachers mixes two teachers at least"),
        ({}, {"teachers": {"t": 1, "u": float("inf")}}, "at least, by finite weights"),
        ({}, {"teachers": {"t": 1, "u": 1}, "mix": 1.0}, "on_policy.teachers would be ignored with on_policy.mix=1"),
        ({}, {"seed": 1, "mix": 1.0}, "on_policy.seed would be ignored with on_policy.mix=1"),
        ({}, {"samples": 2, "mix": 1.0}, "on_policy.samples would be ignored with on_policy.mix=1: nobody writes"),
        ({}, {"temperature": 0.7, "mix": 1.0}, "on_policy.temperature would be ignored with on_policy.mix=1"),
        ({}, {"top_p": 0.9, "mix": 1.0}, "on_policy.top_p would be ignored with on_policy.mix=1"),
        ({}, {"keep_rounds": 2, "mix": 1.0}, "on_policy.keep_rounds would be ignored with on_policy.mix=1"),
        ({}, {"max_new_tokens": 96, "mix": 1.0}, "on_policy.max_new_tokens would be ignored with on_policy.mix=1"),
        ({}, {"loss": DistillationLoss(kl_weight=1.0), "mix": 1.0}, "on_policy.loss would be ignored with"),
        ({"revision": "r"}, {"teachers": {"t": 1, "u": 1}}, "cache_logits.model.revision is one teacher's"),
        ({"kind": "labels"}, {"teachers": {"t": 1, "u": 1}}, "kind labels has no distributions that on_policy.teach"),
        ({"kind": "labels"}, {"temperature": 0.7}, "on_policy.temperature=0.7 and top_p=1 draw from another"),
        ({"kind": "labels"}, {"mix": 0.5}, "kind labels has no distributions for fit.data.logits"),
        ({"kind": "labels"}, {"loss": DistillationLoss(kl_weight=1.0)}, "kind labels, give only reverse_kl without"),
        ({}, {"loss": DistillationLoss(kl_weight=1.0, max_weight=3.0)}, "loss.max_weight would be ignored"),
        ({"kind": "sampled"}, {}, "a sampled teacher gives only forward_kl"),
    ],
)
def test_what_teachers_cannot_give_is_refused(model: dict, settings: dict, message: str) -> None:
    cache = SECTIONS["cache_logits"] | {"model": {"teacher": "t", **model}, "output": "l"}
    fit = SECTIONS["fit"] | {"data": SECTIONS["fit"]["data"] | {"logits": ["l"]}}
    with pytest.raises(ValueError, match=message):
        make_plan(SECTIONS | {"cache_logits": cache, "fit": fit}, **settings)


def test_privileged_context_is_the_gold_answer_alone() -> None:
    encoding = {"max_length": 400, "template_options": {"enable_thinking": False}}
    fit = SECTIONS["fit"] | {"data": SECTIONS["fit"]["data"] | {"encoding": encoding}}
    with pytest.raises(ValueError, match=r"^cache_logits.data.encoding.template_options.* is None, but fit.data.enc"):
        make_plan(SECTIONS | {"fit": fit}, **SELF)
