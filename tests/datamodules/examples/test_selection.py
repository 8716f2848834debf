"""Tests of which rationales are learnt from: those that were cut off are not, those that are there twice are said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.annotation import QuestionDataModule
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.evaluation import EvaluationDataModule
from datamodules.examples.selection import RationaleFilters, draw_questions, find_words
from datamodules.examples.tokenization import ANSWER
from datamodules.rationales.store import Rationale, find_repeats, write_rationales
from studies.diagnostics.sources import TaskSource, load_task
from tests.tiny import build, make_questions, make_rationale, save_model, write_questions

QUESTIONS = make_questions(8)


def cut(rationale: Rationale, length: int = 25) -> Rationale:
    return replace(rationale, text=rationale.text[:length], finish_reason="length")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of teacher t, every other rationale is cut off; of teacher u none."""
    folder = tmp_path_factory.mktemp("selection")
    save_model(folder / "model")
    write_questions(folder / "q.jsonl", QUESTIONS)
    whole = [make_rationale(question, "t") for question in QUESTIONS]
    mixed = [cut(rationale) if index % 2 else rationale for index, rationale in enumerate(whole)]
    write_rationales(folder / "t.parquet", mixed, {})
    write_rationales(folder / "u.parquet", [make_rationale(question, "u") for question in QUESTIONS], {})
    write_rationales(folder / "torn.parquet", [cut(rationale) for rationale in whole], {})
    return folder


def make_data(folder: Path, *stores: str, kind: type = DistillationDataModule, **options) -> RationaleDataModule:
    paths = [str(folder / f"{store}.parquet") for store in stores]
    settings = {"prompt": "plain", "cache_dir": str(folder / "tokenized"), **options}
    data = build(kind, str(folder / "model"), str(folder / "q.jsonl"), rationales=paths, **settings)
    data.setup("fit")
    return data


def list_ids(data: RationaleDataModule) -> list[str]:
    return [example.id for example in data.examples]


@pytest.mark.parametrize("kind", [DistillationDataModule, RationaleDataModule])
def test_what_was_cut_off_is_left_out_and_counted(folder: Path, kind: type) -> None:
    data = make_data(folder, "t", kind=kind)
    assert list_ids(data) == [f"q{number}/t/0" for number in (0, 2, 4, 6)]
    assert data.source.num_left == {"rationales": 8, "not truncated": 4, "correct": 4}
    kept = make_data(folder, "t", kind=kind, keep_truncated=True)
    assert len(list_ids(kept)) == 8 and kept.source.num_left == {"rationales": 8, "correct": 8}


def test_a_question_whose_rationale_was_cut_off_is_not_answered(folder: Path) -> None:
    data = make_data(folder, "t", "u", teachers=["u"], answered_by=["t", "u"])
    assert list_ids(data) == [f"q{number}/u/0" for number in (0, 2, 4, 6)]


def test_where_all_were_cut_off_the_way_out_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"all of them are truncated; set data\.filters\.keep_truncated"):
        make_data(folder, "torn")
    with pytest.raises(
        ValueError, match=r"data\.filters\.keep_truncated is about rationales; supervision label has none"
    ):
        make_data(folder, supervision="label", keep_truncated=True)


def test_no_answer_sentence_follows_a_torn_text(folder: Path) -> None:
    data = make_data(folder, "torn", keep_truncated=True)
    for example, question in zip(data.examples, QUESTIONS, strict=True):
        completion = data.tokenizer.decode(example.token_ids[example.num_prompt_tokens :], skip_special_tokens=True)
        assert completion == make_rationale(question, "t").text[:25].strip()
        # Nobody wrote an end there, but where the answer was reached.
        assert (data.tokenizer.eos_token_id in example.token_ids) == (ANSWER in example.segments)
    assert len({ANSWER in example.segments for example in data.examples}) == 2


def test_what_is_rewritten_and_compared_with_was_not_cut_off(folder: Path) -> None:
    arguments = (str(folder / "model"), str(folder / "q.jsonl"))
    whole = {f"q{number}" for number in (0, 2, 4, 6)}
    for keep, asked in ((False, whole), (True, {question.id for question in QUESTIONS})):
        rewriting = build(
            QuestionDataModule, *arguments, prompt="paraphrase", rewrites=str(folder / "t.parquet"), keep_truncated=keep
        )
        compared = build(
            EvaluationDataModule,
            *arguments,
            prompt="plain",
            references=[str(folder / "t.parquet")],
            keep_truncated=keep,
        )
        spec = TaskSource(arguments[1], [str(folder / "t.parquet")], keep_truncated=keep)
        if keep:
            found = [load_task("colours", spec, 100, 0)]
            rewriting.setup("predict")
            compared.setup("predict")
        else:
            with pytest.warns(UserWarning, match=r"t\.parquet: 4 of 8 rationales are truncated and left out"):
                found = [load_task("colours", spec, 100, 0)]
            with pytest.warns(UserWarning, match="4 of 8"):
                rewriting.setup("predict")
            with pytest.warns(UserWarning, match="4 of 8"):
                compared.setup("predict")
        assert {item.question_id for item in found[0].rationales["t"]} == asked
        assert set(rewriting.posed) == set(compared.references) == asked
    with pytest.raises(ValueError, match=r"data\.keep_truncated is given without data.rewrites"):
        build(QuestionDataModule, *arguments, keep_truncated=True)
    with pytest.raises(ValueError, match=r"data\.keep_truncated is given without data.references"):
        build(EvaluationDataModule, *arguments, keep_truncated=True)


def test_samples_with_the_same_text_are_said(folder: Path, tmp_path: Path) -> None:
    first = make_rationale(QUESTIONS[0], "t")
    again = [replace(first, sample=1, text=first.text.upper() + "\n"), replace(first, sample=2, text="Red.")]
    other = replace(first, teacher="u", text=first.text)
    empty = [replace(first, sample=number, text="") for number in (3, 4)]
    assert find_repeats([first, *again, other, *empty]) == {"q0/t/1"}
    write_rationales(tmp_path / "twice.parquet", [first, again[0]], {})
    with pytest.warns(UserWarning, match="1 of 2 rationales repeat another sample of their teacher word by word"):
        data = make_data(folder, str(tmp_path / "twice"))
    assert len(data.examples) == 2


def write_mixed(path: Path) -> None:
    """Of question 0 teacher t has a right and a wrong rationale, u a right one; of question 1 t has a right one."""
    first, second = QUESTIONS[:2]
    wrong = make_rationale(first, "t", 1, right=False)
    kept = [make_rationale(first, "t"), wrong, make_rationale(first, "u"), make_rationale(second, "t")]
    write_rationales(path, kept, {})


def test_each_filter_counts_what_it_leaves(folder: Path, tmp_path: Path) -> None:
    write_mixed(tmp_path / "m.parquet")

    def select(**options) -> tuple[list[str], dict[str, int]]:
        data = make_data(folder, str(tmp_path / "m"), **options)
        return list_ids(data), data.source.num_left

    assert select() == (["q0/t/0", "q0/u/0", "q1/t/0"], {"rationales": 4, "correct": 3})
    assert select(correct_only=False) == (["q0/t/0", "q0/t/1", "q0/u/0", "q1/t/0"], {"rationales": 4})
    assert select(teachers=["t"], samples_per_question=1, correct_only=False) == (
        ["q0/t/0", "q1/t/0"],
        {"rationales": 3, "samples_per_question": 2},
    )
    assert select(answered_by=["u"], correct_only=False) == (
        ["q0/t/0", "q0/t/1", "q0/u/0"],
        {"rationales": 4, "shared questions": 3},
    )
    assert select(solved_by=["u"], teachers=["t"]) == (
        ["q0/t/0"],
        {"rationales": 3, "shared questions": 2, "correct": 1},
    )
    assert select(teachers=["t"], matched_with=["t", "u"]) == (
        ["q0/t/0"],
        {"rationales": 3, "correct": 2, "matched lengths": 1},
    )


def test_texts_without_a_word_are_those_without_it_in_question_options_and_rationale(folder: Path) -> None:
    def list_left(*words: str) -> list[str]:
        return list_ids(make_data(folder, "u", without=list(words)))

    # Whole words, in any case: "these" is in some questions, "and so" in some rationales, "white" in some options.
    texts = [
        f"{question.question} {' '.join(question.choices)} {make_rationale(question, 'u').text}"
        for question in QUESTIONS
    ]
    everything = [f"q{number}/u/0" for number in range(8)]
    for words in (["THESE"], ["and so"], ["white"], ["these", " white "]):
        expected = [
            name
            for name, text in zip(everything, texts, strict=True)
            if not any(word.strip().lower() in text for word in words)
        ]
        assert list_left(*words) == expected and 0 < len(expected) < 8
    assert list_left("hes", "whit", ".*", "zebra") == everything
    data = make_data(folder, "u", without=["white"])
    assert list(data.source.num_left) == ["rationales", "correct", "without"]
    with pytest.raises(ValueError, match="correct_only is on, without is on"):
        list_left("answer")
    with pytest.raises(ValueError, match="without holds an empty word"):
        list_left("white", " ")
    with pytest.raises(ValueError, match="without is about rationales"):
        make_data(folder, supervision="label", without=["white"])


def test_a_word_is_found_where_no_spaces_part_words() -> None:
    texts = {
        "zh": "戒指是黄金做的。",
        "th": "แหวนทำจากทองคำ",
        "mixed": "这是gold戒指",
        "other": "杯子是玻璃做的",
        "en": "a golden ring",
    }
    assert find_words(["黄金"], texts) == {"zh"} and find_words([" ทองคำ", "银"], texts) == {"th"}
    assert find_words(["Gold"], texts) == {"mixed"} and find_words(["金黄", "gol"], texts) == set()


def test_lengths_are_matched_by_characters_where_no_spaces_part_words(folder: Path, tmp_path: Path) -> None:
    short, long = make_rationale(QUESTIONS[0], "t"), make_rationale(QUESTIONS[0], "u")
    texts = {"short": "所以答案是这个。", "long": "我们先看第一个选项，再看第二个选项，然后比较它们。所以答案是这个。"}
    own = [replace(short, text=texts["short"]), replace(long, text=texts["long"])]
    write_rationales(tmp_path / "z.parquet", own, {})
    with pytest.raises(ValueError, match="matched_with is on"):
        make_data(folder, str(tmp_path / "z"), matched_with=["t", "u"])
    write_rationales(tmp_path / "s.parquet", [own[0], replace(own[1], text="因此选的是那个。")], {})
    assert list_ids(make_data(folder, str(tmp_path / "s"), matched_with=["t", "u"])) == ["q0/t/0", "q0/u/0"]


def test_an_empty_completion_is_refused_by_its_id_unless_it_is_left_out(folder: Path, tmp_path: Path) -> None:
    right, empty = make_rationale(QUESTIONS[0], "t"), make_rationale(QUESTIONS[1], "t", right=False)
    write_rationales(tmp_path / "e.parquet", [right, replace(empty, text="", answer=None)], {})
    message = r"^rationale 'q1/t/0' has an empty completion; correct_only leaves such ones out$"
    with pytest.raises(ValueError, match=message):
        make_data(folder, str(tmp_path / "e"), correct_only=False)
    assert list_ids(make_data(folder, str(tmp_path / "e"))) == ["q0/t/0"]


def test_filters_that_name_the_wrong_teachers_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.parquet: no rationale of \['v'\]; there are \['t'\]"):
        make_data(folder, "t", matched_with=["t", "v"])
    with pytest.raises(ValueError, match=r"matched_with does not name \['u'\], whose rationales are used"):
        make_data(folder, "t", "u", matched_with=["t"])


def test_where_nothing_is_left_the_filters_that_are_on_are_named(folder: Path, tmp_path: Path) -> None:
    wrong = [make_rationale(question, "t", right=False) for question in QUESTIONS]
    write_rationales(tmp_path / "w.parquet", wrong, {})
    with pytest.raises(
        ValueError, match=r"none of 8 rationales is left after filtering \(correct_only is on, solved_by is on\); "
    ):
        make_data(folder, str(tmp_path / "w"), solved_by=["t"])


def test_a_share_of_the_questions_is_held_out_whatever_the_filters(folder: Path) -> None:
    splits = [make_data(folder, "u", "t", teachers=names, fraction=0.5, seed=3) for names in (["u"], ["t"])]
    held_out = [set(data.val_examples.column("question_id")) for data in splits]
    assert [len(data.train_examples) for data in splits] == [4, 2] and [len(ids) for ids in held_out] == [4, 2]
    assert len(make_data(folder, "u").train_examples) == 8


def test_a_question_is_held_out_with_its_translations_and_its_group(folder: Path, tmp_path: Path) -> None:
    same = [replace(item, choices=QUESTIONS[0].choices, gold=QUESTIONS[0].gold) for item in QUESTIONS]
    languages = [replace(item, parallel=f"p{n // 2}", language=("de", "fr")[n % 2]) for n, item in enumerate(same)]
    groups = [replace(item, group=f"g{n // 4}") for n, item in enumerate(QUESTIONS)]
    for name, questions, size in (("languages", languages, 2), ("groups", groups, 4)):
        write_questions(tmp_path / f"{name}.jsonl", questions)
        write_rationales(tmp_path / f"{name}.parquet", [make_rationale(question, "u") for question in questions], {})
        for seed in range(4):
            settings = {"prompt": "plain", "cache_dir": str(tmp_path / "tokenized"), "fraction": 0.5, "seed": seed}
            paths = [f"{tmp_path}/{name}.parquet"]
            data = build(
                DistillationDataModule, str(folder / "model"), f"{tmp_path}/{name}.jsonl", rationales=paths, **settings
            )
            data.setup("fit")
            held_out = [int(identifier[1:]) // size for identifier in data.val_examples.column("question_id")]
            assert len(held_out) == 4 and all(held_out.count(number) == size for number in held_out)


def test_only_published_rationales_may_be_empty(folder: Path, tmp_path: Path) -> None:
    records = [
        {"id": question.id, "rationales": {"t": {"text": "" if number < 3 else "It is so."}}}
        for number, question in enumerate(QUESTIONS)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"prompt": "plain", "cache_dir": str(tmp_path / "tokenized"), "correct_only": False}
    arguments = (str(folder / "model"), str(folder / "q.jsonl"), [str(tmp_path / "p.jsonl")])
    data = build(RationaleDataModule, *arguments, **options)
    with pytest.warns(UserWarning, match=r"p\.jsonl: 3 published rationales are empty and are left out"):
        data.setup("fit")
    assert list_ids(data) == [f"q{number}/t/0" for number in range(3, 8)]
    assert data.source.num_left == {"rationales": 8, "not empty": 5}


def test_a_seeds_smaller_draw_is_within_its_larger_one_whatever_the_order() -> None:
    questions = make_questions(40)
    for seed in range(3):
        drawn = [{question.id for question in draw_questions(questions, limit, seed)} for limit in (4, 10, 40)]
        assert drawn[0] < drawn[1] < drawn[2] and [*map(len, drawn)] == [4, 10, 40]
        backwards = draw_questions(questions[::-1], 10, seed)
        assert {question.id for question in backwards} == drawn[1]
        assert [questions.index(question) for question in backwards] == sorted(map(questions.index, backwards))[::-1]
    assert len({frozenset(question.id for question in draw_questions(questions, 10, seed)) for seed in range(5)}) == 5
    assert draw_questions(questions, 3, None) == questions[:3] and draw_questions(questions, None, None) == questions
    translated = [replace(question, group=f"g{number // 2}") for number, question in enumerate(questions)]
    assert {question.cluster for question in draw_questions(translated, 6, 0)} == {
        question.cluster for question in draw_questions(translated, 5, 0)
    }
    with pytest.raises(ValueError, match=r"data.limit=41: there are only 40 questions to draw from"):
        draw_questions(questions, 41, 0)


def test_arms_of_one_seed_learn_from_the_same_drawn_questions(folder: Path) -> None:
    learned = {}
    for store, limit, seed in (("u", 3, 1), ("u", 5, 1), ("u", 3, 2), ("torn", 3, 1)):
        data = make_data(folder, store, limit=limit, limit_seed=seed, filters=RationaleFilters(keep_truncated=True))
        data.setup("fit")
        learned[store, limit, seed] = set(data.examples.column("question_id"))
    assert learned["u", 3, 1] == learned["torn", 3, 1] < learned["u", 5, 1]
    assert learned["u", 3, 1] != learned["u", 3, 2]
    with pytest.raises(ValueError, match=r"data.limit_seed=1 would be ignored"):
        make_data(folder, "u", limit_seed=1)
