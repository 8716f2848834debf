"""Tests of the readers of published collections, on miniature files of each one's real schema."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.rationales.published import COLLECTIONS, QuestionIndex, import_rationales
from datamodules.rationales.store import Rationale, load_rationales, read_gold_conditions, read_metadata
from datamodules.tasks.questions import Question
from scripts.import_rationales import main

SUN = Question("7-980", "openbookqa", "train", "The sun is responsible for", ("puppies", "wilting"), "B")
APPLES = Question("6b", "commonsense_qa", "train", 'There are "X" apples. What is it?', ("park", "maths"), "B")
KHAN = Question("2b", "strategyqa", "train", "Is Khan's heir older?", ("True", "False"), "B")
LUKE = Question("chal-1", "svamp", "train", "Luke scored 84 points in 2 rounds. How many per round?", None, "42")
DUCKS = Question("g-0", "gsm8k", "test", "Janet’s ducks lay 16 eggs. How many?", None, "18")
PRIME = Question("m-0", "hendrycks_math", "train", "Half of $x$?", None, r"\frac{x}{2}", expression=True)
QUESTIONS = [SUN, APPLES, KHAN, LUKE, DUCKS, PRIME]


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_eit(clone: Path) -> None:
    sun = "Q: The sun is responsible for Answer choices: A: puppies, B: wilting"
    khan = "Is Khan's heir older?"
    for name, instruction, output in [
        ("obqa_gemini_level1_ranked", sun, "It shines. The answer is B"),
        ("openbookQA_chatgpt_level_6_ranked", sun, "\n It shines. The answer is A"),
        ("openbookqa_chatgpt_rar_level3_ranked", sun, "Hm. The answer is B"),
        ("openbookQA_ChatGPT_0_shot_without_gt_ranked", sun, "1. Hm.The answer is B: wilting"),
        ("stqa_llama_level2_ranked", khan, "He died. The answer is False"),
        ("strategyQA_chatgpt_level_1_ranked", khan, "<Solution Path>He died.</Solution Path> The answer is True"),
        ("openbookQA_onlyans", sun, "B"),
    ]:
        write(clone / "data" / f"{name}.json", [{"instruction": instruction, "output": output}])
    record = {"problem": "Half of $x$?", "level": "Level 1", "type": "Algebra", "solution": "x.", "output": "gold"}
    write(clone / "data" / "math_gemini_level1_ranked.json", [{**record, "gemini_output": "Divide. The answer is x/2"}])


def make_tinyllm(clone: Path) -> None:
    flan = "Sun wilts. Thus, the answer is (b) wilting"
    question = "\n\nQ: The sun is responsible for\nAnswer Choices:\n(a) puppies\n(b) wilting"
    whole, cut = " llama rationale: Step 1.\nHence, option (a) is correct.", " llama rationale: If the sun is"
    write(clone / "datasets/obqa/llm/train_CoT_0.json", [flan + question + whole, flan + question + cut])
    write(clone / "datasets/piqa/llm/train_CoT_0.json", [flan + question])


def make_palm(clone: Path) -> None:
    write_lines(
        clone / "datasets/cqa/cqa_train.json", [{"id": "z", "question": "Else?"}, {"question": APPLES.question}]
    )
    write(clone / "datasets/cqa/palm/train_CoT_0.json", ["Nothing. So the answer is (a) x."])
    invented = "Only maths. So the answer is (b) maths.\n\nQ: What is big?\nAnswer Choices:\n(a) horse\nA: So the"
    write(clone / "datasets/cqa/palm/train_CoT_1.json", [invented])
    luke = {"input": "Luke scored 84 points in 2 rounds.\nHow many per round?", "label": "( 84.0 / 2.0 )"}
    write_lines(clone / "datasets/svamp/svamp_test.json", [luke, luke])
    texts = ["84 / 2 = 42. The answer is (80 / 2) - (-2).\n\nQ: There are", "Luke scored 84 points and"]
    write(clone / "datasets/svamp/palm/test_CoT_0.json", texts)


def make_chatqa(clone: Path) -> None:
    text = 'There are "X" apples. What is it?\nAnswer Choices:\n(a) park\n(b) maths'
    records = [{"input": text, "gen_label": " Rationale: It counts, hence the answer is (b) maths.", "org_label": "x"}]
    write(clone / "datasets/cqa/cqa_train_random_llama3.json", records)
    write(clone / "datasets/cqa/cqa_train_llama3.json", [{"input": text, "gen_label": " ", "org_label": "maths"}])


def make_zeroeval(clone: Path) -> None:
    def record(output: str) -> dict:
        return {"session_id": "0", "output": [output], "question": DUCKS.question, "answer": "# 18", "generator": "g"}

    reply = '```json\n{\n "reasoning": "16 eggs\\nare $18.",\n "answer": "$18"\n}\n```'
    write(clone / "result_dirs/gsm/gemma-2-9b-it.json", [record(reply)])
    half = r'{"reasoning": "Half is $\frac{x}{2}$.", "answer": "0.5x"}'
    write(clone / "result_dirs/math-l5/gemma-2-9b-it.json", [{"problem": PRIME.question, "output": [half]}])
    write(clone / "result_dirs/gsm/gpt-4o-2024-05-13.json", [record("I cannot say."), record('{"reasoning": "9')])


def make_mentor(clone: Path) -> None:
    record = {"input": LUKE.question + "\n", "chain": "84 / 2 = 42.", "answer": "42", "initial_correct": True}
    write(clone / "data/main/svamp_3_train.json", [record, {**record, "chain": "It is 42."}])
    wrong = {**record, "completion": "40.0", "chain": "It is 40."}
    write(clone / "data/aug/t5_large/svamp_rand3_aug3.json", [wrong])
    khan = {"input": KHAN.question, "chain": "He died.", "answer": "No", "initial_correct": True}
    write(clone / "data/main/strategy_qa_3_train.json", [khan])
    write(clone / "data/main/svamp_test.json", [{"input": LUKE.question, "answer": "42"}])


def make_gsm8k(clone: Path) -> None:
    solved = {"is_correct": True, "solution": "She sells 9 * 2 = $<<9*2=18>>18\nA: 18"}
    cut = {"is_correct": False, "solution": "For the first, 5 * 1"}
    record = {"question": DUCKS.question, "ground_truth": "A: 18", "6b_finetuning": cut, "175b_verification": solved}
    write_lines(clone / COLLECTIONS["gsm8k_solutions"].files, [record])


def make_jsonl(clone: Path) -> None:
    record = {"question": SUN.question, "teacher": "qwen2-7b", "text": "So B.", "gold_conditioned": None}
    write_lines(clone / "mine.jsonl", [{**record, "answer": "wilting"}, {**record, "question": "Unheard of?"}])


# For each collection: what it imports as (question, teacher, text, answer, family, whether cut), and its counts.
CASES: dict[str, tuple[Callable[[Path], None], set[tuple], dict[str, int]]] = {
    "eit": (
        make_eit,
        {
            ("7-980", "gemini-1.5-flash/L1", "It shines. The answer is B", "B", "gemini", False),
            ("7-980", "gpt-4o/L6", "It shines. The answer is A", "A", "gpt", False),
            ("7-980", "gpt-4o/L3/rar", "Hm. The answer is B", "B", "gpt", False),
            ("7-980", "gpt-4o/0_shot_without_gt", "1. Hm.The answer is B: wilting", "B", "gpt", False),
            ("2b", "llama-3-70b/L2", "He died. The answer is False", "B", "llama-3", False),
            ("2b", "gpt-4o/L1", "He died. The answer is True", "A", "gpt", False),
            ("m-0", "gemini-1.5-flash/L1", "Divide. The answer is x/2", "x/2", "gemini", False),
        },
        {
            "published": 7,
            "tags removed": 1,
            "files without one teacher's rationales": 1,
            "right in another notation than the gold answer": 1,
        },
    ),
    "tinyllm": (
        make_tinyllm,
        {
            ("7-980", "flan-t5", "Sun wilts. Thus, the answer is (b) wilting", "B", "t5", False),
            ("7-980", "llama-2", "Step 1.\nHence, option (a) is correct.", "A", "llama-2", False),
            ("7-980", "llama-2", "If the sun is", None, "llama-2", True),
        },
        {"published": 5, "cut in the middle": 1, "repeat another sample word by word": 2},
    ),
    "palm": (
        make_palm,
        {
            ("6b", "palm-540b", "Only maths. So the answer is (b) maths.", "B", "palm", False),
            ("chal-1", "palm-540b", "84 / 2 = 42. The answer is (80 / 2) - (-2).", "42", "palm", False),
            ("chal-1", "palm-540b", "Luke scored 84 points and", "84", "palm", True),
        },
        {
            "published": 4,
            "invented next questions cut off": 2,
            "left out: of unknown questions": 1,
            "cut in the middle": 1,
        },
    ),
    "chatqa": (
        make_chatqa,
        {
            (
                "6b",
                "llama3-chatqa-1.5-8b/random",
                "It counts, hence the answer is (b) maths.",
                "B",
                "llama-3",
                False,
            )
        },
        {"published": 2, "headings removed": 1, "left out: empty": 1},
    ),
    "zeroeval": (
        make_zeroeval,
        {
            ("m-0", "gemma-2-9b-it", r"Half is $\frac{x}{2}$.", "0.5x", "gemma-2", False),
            ("g-0", "gemma-2-9b-it", "16 eggs\nare $18.", "18", "gemma-2", False),
        },
        {
            "published": 2,
            "left out: no JSON object (gpt-4o-2024-05-13)": 1,
            "left out: cut off (gpt-4o-2024-05-13)": 1,
            "right in another notation than the gold answer": 1,
        },
    ),
    "mentor_kd": (
        make_mentor,
        {
            ("chal-1", "gpt-3.5-turbo", "84 / 2 = 42.", "42", "gpt", False),
            ("chal-1", "gpt-3.5-turbo", "It is 42.", "42", "gpt", False),
            ("chal-1", "t5-large-mentor", "It is 40.", "40", "t5", False),
            ("2b", "gpt-3.5-turbo", "He died.", "B", "gpt", False),
        },
        {"published": 4},
    ),
    "gsm8k_solutions": (
        make_gsm8k,
        {
            ("g-0", "gpt-3-175b/verification", "She sells 9 * 2 = $18", "18", "gpt-3", False),
            ("g-0", "gpt-3-6b/finetuning", "For the first, 5 * 1", "5", "gpt-3", True),
        },
        {"published": 2, "calculator notes removed": 1, "answer lines made answers": 1, "cut in the middle": 1},
    ),
    "jsonl": (
        make_jsonl,
        {("7-980", "qwen2-7b", "So B.", "B", "qwen2", False)},
        {"published": 2, "left out: of unknown questions": 1},
    ),
}


def test_every_collection_has_a_miniature() -> None:
    # `records` are no collection, but of any shape; its tests are test_formats.py.
    assert {*CASES, "records"} == set(COLLECTIONS)


@pytest.mark.parametrize("name", CASES)
def test_a_miniature_of_the_real_schema(tmp_path: Path, name: str) -> None:
    make, expected, counted = CASES[name]
    make(tmp_path)
    rationales, _, counts = import_rationales(name, tmp_path, QUESTIONS)

    def describe(item: Rationale) -> tuple:
        return item.question_id, item.teacher, item.text, item.answer, item.family, item.finish_reason == "length"

    assert {describe(item) for item in rationales} == expected
    assert dict(counts) == counted
    assert len({item.id for item in rationales}) == len(rationales)
    golds = {question.id: question.gold for question in QUESTIONS}
    assert all(item.correct == (item.answer in (golds[item.question_id], "x/2", "0.5x")) for item in rationales)


@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        (
            "eit",
            {
                "gpt-4o/0_shot_without_gt": False,
                **{
                    t: True
                    for t in ("gemini-1.5-flash/L1", "gpt-4o/L6", "gpt-4o/L3/rar", "llama-3-70b/L2", "gpt-4o/L1")
                },
            },
        ),
        ("tinyllm", {"flan-t5": True, "llama-2": True}),
        ("palm", {"palm-540b": False}),
        ("jsonl", {}),
    ],
)
def test_who_saw_the_gold_answer_is_recorded(tmp_path: Path, name: str, conditions: dict) -> None:
    CASES[name][0](tmp_path)
    assert import_rationales(name, tmp_path, QUESTIONS)[1] == conditions


def test_a_question_is_found_whatever_its_punctuation_and_list_of_options() -> None:
    twin = Question("other", "openbookqa", "train", SUN.question, ("cats", "dogs"), "A")
    index = QuestionIndex([SUN, twin])
    assert index.find("Q: the sun, is responsible for: Answer choices: A: puppies, B: wilting") == [SUN]
    assert index.find("The sun is responsible for\nAnswer Choices:\n(a) cats\n(b) dogs") == [twin]
    assert index.find("The sun is responsible for") == [SUN, twin]
    assert index.find("The moon is responsible for") == []


def test_a_text_of_several_questions_is_left_out(tmp_path: Path) -> None:
    make_jsonl(tmp_path)
    twin = Question("other", "openbookqa", "train", SUN.question, ("cats", "dogs"), "A")
    rationales, _, counts = import_rationales("jsonl", tmp_path, [SUN, twin])
    assert not rationales and counts["left out: of ambiguous questions"] == 1


@pytest.mark.parametrize(
    "change", [{"text": "So \ud83d"}, {"teacher": ""}, {"teacher": "a\nb"}, {"question": "\ud83d"}]
)
def test_what_no_store_could_hold_is_left_out(tmp_path: Path, change: dict) -> None:
    record = {"question": SUN.question, "teacher": "t", "text": "The answer is B.", "gold_conditioned": None}
    write_lines(tmp_path / "mine.jsonl", [record, {**record, **change}])
    write_lines(tmp_path / "q_train.jsonl", [SUN.content])
    output = tmp_path / "mine.parquet"
    main(
        [
            "jsonl",
            str(tmp_path),
            "--files=mine.jsonl",
            f"--questions={tmp_path / 'q_train.jsonl'}",
            f"--output={output}",
        ]
    )
    [rationale] = load_rationales([str(output)], {SUN.id: SUN})
    assert (rationale.teacher, rationale.answer) == ("t", "B")
    assert read_metadata(output)["counts"]["left out: not a text"] == 1


def test_the_script_writes_a_store_that_says_where_it_is_from(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_palm(tmp_path)
    write_lines(tmp_path / "q_train.jsonl", [vars(APPLES)])
    output = tmp_path / "out" / "palm.parquet"
    arguments = ["palm", str(tmp_path), "--questions", str(tmp_path / "q_train.jsonl"), "--output", str(output)]
    main([*arguments, "--files", "datasets/cqa/palm/*"])
    printed = capsys.readouterr().out
    assert "1 rationales" in printed and "1 invented next questions cut off" in printed
    assert "palm-540b: 1, 100.0% with an answer, 100.0% right, did not see the gold answer" in printed
    [rationale] = load_rationales([str(output)], {APPLES.id: APPLES})
    assert (rationale.question_id, rationale.answer, rationale.finish_reason) == ("6b", "B", "imported")
    metadata = read_metadata(output)
    assert (metadata["collection"], metadata["licence"], metadata["commit"]) == ("palm", "Apache-2.0", None)
    assert metadata["counts"]["left out: of unknown questions"] == 1
    assert metadata["creation"]["extractors"] == ["neutral-6", "paper-2"]
    assert read_gold_conditions([str(output)]) == {"palm-540b": False}
    write_lines(tmp_path / "q_train.jsonl", [vars(SUN)])
    with pytest.raises(ValueError, match="no rationale of the questions of"):
        main(arguments)


def test_what_is_not_there_or_not_as_it_should_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no files data/\*\.json"):
        import_rationales("eit", tmp_path, QUESTIONS)
    with pytest.raises(ValueError, match="collection 'eti' is unknown; there are: eit, tinyllm"):
        import_rationales("eti", tmp_path, QUESTIONS)
    write(tmp_path / "data" / "obqa_gemini_level1_ranked.json", [{"question": "Which?"}])
    with pytest.raises(ValueError, match=r"obqa_gemini_level1_ranked\.json: not as the collection eit has it"):
        import_rationales("eit", tmp_path, QUESTIONS)
    (tmp_path / "data" / "obqa_gemini_level1_ranked.json").write_text("[{")
    with pytest.raises(ValueError, match=r"obqa_gemini_level1_ranked\.json: cannot be read as JSON"):
        import_rationales("eit", tmp_path, QUESTIONS)
    write_lines(tmp_path / "mine.jsonl", [{"question": "Which?", "text": "So."}])
    with pytest.raises(ValueError, match=r"mine\.jsonl:1: rationale without field teacher, gold_conditioned"):
        import_rationales("jsonl", tmp_path, QUESTIONS)
    record = {"question": SUN.question, "teacher": "t", "text": "So.", "gold_conditioned": None}
    for name, value in {"gold_conditioned": "no", "answer": ["B"]}.items():
        write_lines(tmp_path / "mine.jsonl", [{**record, name: value}])
        with pytest.raises(ValueError, match=rf"mine\.jsonl:1: `{name}` must be"):
            import_rationales("jsonl", tmp_path, QUESTIONS)
