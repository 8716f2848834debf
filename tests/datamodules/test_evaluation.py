"""Tests of what a student is asked: options as endings, and references that fit the questions."""

import json
from pathlib import Path

import pytest

from datamodules.evaluation import EvaluationDataModule
from datamodules.rationales.store import write_rationales
from tests.tiny import build, make_questions, make_rationale, save_model, write_questions

QUESTIONS = make_questions(9)
TEMPLATE = "{{ messages[0].content + '\\nreply:\\n' }}"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A model, nine questions, and two teachers' rationales: of each question, and of the first three."""
    folder = tmp_path_factory.mktemp("questions")
    rationales = [make_rationale(question, "kin") for question in QUESTIONS]
    rationales += [make_rationale(question, "other", sample) for question in QUESTIONS[:3] for sample in range(2)]
    write_rationales(folder / "r.parquet", rationales, {})
    questions = write_questions(folder / "colours_test.jsonl", QUESTIONS)
    return save_model(folder / "model"), questions, str(folder / "r.parquet")


def make_data(paths: tuple[str, ...], **options) -> EvaluationDataModule:
    data = build(EvaluationDataModule, *paths[:2], **{"prompt": "plain", **options})
    data.setup("predict")
    return data


def test_options_are_whole_answer_sentences(paths: tuple[str, ...]) -> None:
    data = make_data(paths)
    for identifier, own in data.options.items():
        posed = data.posed[identifier]
        texts = [data.tokenizer.decode(ids) for ids in own.ending_ids]
        assert texts == [f"{text}</s>" for text in own.texts]
        assert own.texts == [f"The answer is {choice}." for choice in posed.question.choices]
        assert own.prompt_ids == posed.prompt_ids


@pytest.mark.parametrize("option_text", ["choice", "letter"])
def test_options_follow_the_cue_after_a_space(paths: tuple[str, ...], option_text) -> None:
    data = make_data(paths, option_text=option_text)
    for identifier, own in data.options.items():
        question = data.posed[identifier].question
        assert own.texts == list(question.choices if option_text == "choice" else question.letters)
        for text, ids in zip(own.texts, own.ending_ids, strict=True):
            whole = data.tokenizer.decode(own.prompt_ids + ids)
            assert whole == data.posed[identifier].text.removesuffix("\n") + f" {text}"
            assert data.tokenizer.decode(ids) == f" {text}"
            assert data.tokenizer(whole).input_ids == own.prompt_ids + ids


def test_options_follow_a_chat_template_without_a_space(paths: tuple[str, ...], tmp_path: Path) -> None:
    folder = Path(save_model(tmp_path / "chat"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    data = make_data((str(folder), paths[1]), option_text="choice")
    own = data.options["q0"]
    # White space at the prompt's end belongs to the ending.
    assert data.tokenizer.decode(own.prompt_ids) == data.posed["q0"].text.rstrip()
    assert [data.tokenizer.decode(ids) for ids in own.ending_ids] == [f"\n{text}" for text in own.texts]


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}:"])
def test_an_empty_option_has_no_likelihood(paths: tuple[str, ...], tmp_path: Path, template: str | None) -> None:
    own = {"id": "e", "question": "Which?", "choices": ["red", ""], "gold": "A"}
    (tmp_path / "e.jsonl").write_text(json.dumps(own) + "\n")
    folder = Path(save_model(tmp_path / "model"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match="question 'e' has an empty option"):
        make_data((str(folder), str(tmp_path / "e.jsonl")), option_text="choice")


def test_a_batch_has_room_for_completions_and_options(paths: tuple[str, ...]) -> None:
    data = make_data(paths)
    data.max_new_tokens = 40
    prompt, options = len(data.posed["q1"].prompt_ids), data.options["q1"].ending_ids
    assert data.count_tokens("q1") == max(prompt + 40, 4 * (prompt + max(map(len, options))))
    data.num_completions = 10
    assert data.count_tokens("q1") == 10 * (prompt + 40)


def test_references_are_those_of_the_questions_that_are_asked(paths: tuple[str, ...]) -> None:
    data = make_data(paths, references=[paths[2]], limit=2)
    assert {identifier: len(own) for identifier, own in data.references.items()} == {"q0": 3, "q1": 3}
    assert data.collect_reference_texts()["q1"] == {
        "kin": ["It is so and so and so and so."],
        "other": ["It is so and so and so and so.", "It is so."],
    }
    assert data.find_longest() == max(
        len(reference.example.token_ids) for own in data.references.values() for reference in own
    )
    only = make_data(paths, references=[paths[2]], teachers=["other"])
    assert {identifier: len(own) for identifier, own in only.references.items()} == {"q0": 2, "q1": 2, "q2": 2}
    assert make_data(paths).find_longest() == 0


def test_references_of_other_questions_are_refused(paths: tuple[str, ...], tmp_path: Path) -> None:
    write_rationales(tmp_path / "x.parquet", [make_rationale(make_questions(12)[11], "kin")], {})
    with pytest.raises(ValueError, match=r"x\.parquet:row 0: a rationale for the unknown question 'q11'"):
        make_data(paths, references=[str(tmp_path / "x.parquet")])
    write_rationales(tmp_path / "y.parquet", [make_rationale(QUESTIONS[8], "kin")], {})
    with pytest.raises(ValueError, match=r"y\.parquet: no rationale of the 2 questions that are asked"):
        make_data(paths, references=[str(tmp_path / "y.parquet")], limit=2)
    with pytest.raises(ValueError, match=r"r\.parquet: no rationale of \['nobody'\]; there are \['kin', 'other'\]"):
        make_data(paths, references=[paths[2]], teachers=["nobody"])


@pytest.mark.parametrize("name", ["logits", "teachers"])
def test_what_only_references_need_is_refused_without(paths: tuple[str, ...], name: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{name} is given without data\.references"):
        make_data(paths, **{name: ["x"]})
