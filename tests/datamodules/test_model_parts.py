"""What is said of models' parts is checked against their files."""

import shutil
from pathlib import Path

import pytest

from datamodules.model_cards import Parts, find_card, find_parts
from datamodules.model_parts import DescribedModel, check_parts, read_facts

MODELS = Path(__file__).parents[2] / "configs" / "models" / "microworld"
SAID = {
    f"{family}-{role}": DescribedModel(str(MODELS / f"{family}-{role}"), Parts(tokenizer, architecture, lineage=family))
    for family, tokenizer, architecture in (("a", "unigram", "LlamaForCausalLM"), ("b", "bpe", "GPTNeoXForCausalLM"))
    for role in ("student", "teacher")
}


def test_what_is_true_passes_and_what_is_elsewhere_is_not_asked() -> None:
    check_parts({**SAID, "hub": DescribedModel("owner/name", Parts("unigram", "Other"))})
    assert read_facts("owner/name") is None


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        (
            "b-teacher",
            Parts(architecture="LlamaForCausalLM"),
            "architecture: LlamaForCausalLM, but .* GPTNeoXForCausalLM",
        ),
        (
            "b-teacher",
            Parts("unigram"),
            "tokenizer: unigram, and b-teacher's is unigram, but their files are different",
        ),
        ("a-teacher", Parts("other"), "tokenizer: unigram, and a-teacher's is other, but their files are the same"),
    ],
)
def test_what_the_files_contradict_is_refused(name, parts, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_parts({**SAID, name: SAID[name]._replace(parts=parts)})


def test_a_model_and_its_base_are_of_one_lineage(tmp_path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(MODELS / "a-student", tuned)
    (tuned / "README.md").write_text(f"---\nbase_model: {MODELS / 'a-student'}\n---\nTuned.\n")
    own = SAID["a-student"]
    check_parts({"own": own, "tuned": own._replace(model=str(tuned))})
    with pytest.raises(ValueError, match=r"own.parts.lineage: a, and tuned's is c, but both come from .*a-student"):
        check_parts({"own": own, "tuned": DescribedModel(str(tuned), Parts(lineage="c"))})


def test_cards_know_parts_and_a_study_may_say_otherwise() -> None:
    card = find_card("model:llama-3-8b-instruct")
    assert card is not None and card.parts == Parts("llama-3", "LlamaForCausalLM", "llama-3", "llama-3-instruct")
    assert find_parts(card.hub, Parts()) == find_parts("model:llama-3-8b-instruct", Parts()) == card.parts
    assert find_parts(card.hub, Parts(style="terse")).style == "terse"
    assert find_parts("some/folder", Parts()) == find_parts(None, Parts()) == Parts()
