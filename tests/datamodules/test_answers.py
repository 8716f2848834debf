"""Tests of answer extraction: tables of styles, the paper's scorer, real rationales, and fuzzing."""

import random
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.answers import EXTRACTORS, extract_neutral, extract_paper, split_answer_sentence
from datamodules.prompts import get_prompt
from datamodules.questions import Question, load_questions
from datamodules.rationales import load_rationales


def ask(*choices: str, gold: str | None = None) -> Question:
    return Question("q", "t", "test", "Which?", choices or None, gold)


CANALS = ask("Michigan", "New York", "Amsterdam", "Venice", "Bridge", gold="D")
CITIES = ask("Rome", "Oslo", "London", "Paris")
LENGTHS = ask("3.5 meters", "3 meters", "35 meters", "0.35 meters")
TINS = ask("tin", "tin can", "can", "a tin roof")
POLAR = ask("True", "False")
PETS = ask("cat", "bird", "dog", "Bach")
ARTICLES = ask("the sun", "a star", "the moon", "an eclipse")
SENTENCES = ask("It rains. It pours.", "Dr. Smith went home.", "Record the details.", "It snows!")
LETTERED = ask("a rock", "an insect", "both", "A and B above")
NUMERIC = ask("1", "2", "3", "10")
MATHS = ask()

LLAMA_FIGURE = (
    "The answer is D) Venice. Venice, Italy is known for its extensive network of canals, which run through the "
    "city. A) Michigan is a state in the United States and B) New York is a city there. C) Amsterdam has canals "
    "too, but it is not in Southern Europe."
)
GPT_FIGURE = (
    "Let's evaluate the options: A) Michigan is in the United States and B) New York is too. C) Amsterdam is in "
    "Northern Europe. D) Venice is a city in Italy, which is located in Southern Europe. E) Bridge is no place. "
    "The correct answer is: D) Venice"
)

CHOICES = [
    # The paper's figure and the table of in-family-evidence.md, 2.4.
    (CANALS, LLAMA_FIGURE, "D"),
    (CANALS, GPT_FIGURE, "D"),
    (CANALS, "The answer is D) Venice.", "D"),
    (CANALS, "The correct answer is: D) Venice", "D"),
    (CANALS, "The correct answer is: D) Venice.", "D"),
    (CANALS, "The correct answer is D) Venice", "D"),
    (CANALS, "the answer is (D) Venice.", "D"),
    (CANALS, "The answer is D.", "D"),
    (CANALS, "The answer is E) Bridge.", "E"),
    (CITIES, "The answer is C) Paris.", "C"),
    (LENGTHS, "The answer is A) 3.5 meters.", "A"),
    # A letter only.
    (CANALS, "D", "D"),
    (CANALS, "D)", "D"),
    (CANALS, "(D)", "D"),
    (CANALS, "**D**", "D"),
    (CANALS, "D.", "D"),
    (CANALS, "D) Venice", "D"),
    (CANALS, "It has many canals.\nD) Venice", "D"),
    (CANALS, "It has many canals.\n\nD", "D"),
    # Other ways to announce it.
    (CANALS, "Answer: D", "D"),
    (CANALS, "Answer: (D)", "D"),
    (CANALS, "Answer:\nD) Venice", "D"),
    (CANALS, "Final Answer: D) Venice", "D"),
    (CANALS, "Final answer (one letter): D", "D"),
    (CANALS, "Thus, the correct option is (d).", "D"),
    (CANALS, "Hence, option (d) is correct.\n\n# Solution\nans = ['a', 'b']", "D"),
    (CANALS, "The correct answer is option D.", "D"),
    (CANALS, "The best choice would be D, because Venice has canals.", "D"),
    (CANALS, "The answer is D because it has canals.", "D"),
    (CANALS, "The answer is D - Venice.", "D"),
    (CANALS, "The answer is D Venice", "D"),
    (CANALS, "Therefore, the answer must be Venice.", "D"),
    (CANALS, "The answer to the question of where there is water is D.", "D"),
    (CANALS, "The correct answer choice is D.", "D"),
    (CANALS, "I would choose D) Venice.", "D"),
    (CANALS, "Option D is correct.", "D"),
    (CANALS, "So (D) Venice is the most likely answer. Option A is too cold.", "D"),
    (CANALS, "D is the correct answer.", "D"),
    (CANALS, "Venice is the right answer, since A is a state.", "D"),
    (CITIES, "C) Paris is the correct answer.", "C"),
    (CANALS, "The answer is **D) Venice**.", "D"),
    (CANALS, "**Answer:** D", "D"),
    (CANALS, "**Answer: (D) Venice**", "D"),
    (CANALS, "### Answer: `D`", "D"),
    (CANALS, 'The answer is "Venice".', "D"),
    (CANALS, r"The final answer is $\boxed{D}$.", "D"),
    (CANALS, r"\boxed{\text{D) Venice}}", "D"),
    (CANALS, r"So we get \boxed{D}. It was easy, since A is in America.", "D"),
    # What is not an answer.
    (CANALS, "The answer is not A.", None),
    (CANALS, "The answer is not A) Michigan.", None),
    (CANALS, "The answer isn't Michigan.", None),
    (CANALS, "Option A is not correct.", None),
    (CANALS, "A is the wrong answer.", None),
    (CANALS, "Option B is incorrect.", None),
    (CANALS, "The answer is A or B.", None),
    (CANALS, "The answer is A, B and C.", None),
    (CANALS, "The answer is F) Lagos.", None),
    (CANALS, "The answer choices are:\nA) Michigan\nB) New York\nC) Amsterdam\nD) Venice\nE) Bridge", None),
    (CANALS, "Step 3: Analyze answer choice A: Michigan is cold. Venice and Amsterdam remain.", None),
    (CANALS, "Evaluate the options: A: a state. B: a city.", None),
    (CANALS, "Option A: Michigan has lakes. Option E: Bridge spans canals. So it is Venice.", "D"),
    (CANALS, "", None),
    (CANALS, "Let's think step by step.", None),
    # Which statement counts.
    (CANALS, "It might seem that the answer is A. But no, the answer is D.", "D"),
    (CANALS, "The answer is C) Amsterdam. Wait, that lies in the north. Option D is correct.", "D"),
    (CANALS, "The canals are in Venice. Michigan is not in Europe.", "D"),
    (CANALS, "Michigan is a state. There are canals in Venice.", "D"),
    (CANALS, "Both Venice and Amsterdam have canals.", None),
    # Options that contain each other, repeat a letter, or are sentences.
    (TINS, "The answer is tin.", "A"),
    (TINS, "The answer is tin can.", "B"),
    (TINS, "The answer is a tin can.", "B"),
    (TINS, "The answer is tin roof.", "D"),
    (TINS, "So it is kept in a tin can.", "B"),
    (TINS, "So it is kept in a can.", "C"),
    (PETS, "The answer is A dog because it barks.", "C"),
    (PETS, "The answer is a dog.", "C"),
    (PETS, "The answer is Bach.", "D"),
    (PETS, "The answer is a) cat.", "A"),
    (PETS, "A dog is the best answer.", "C"),
    (PETS, "The answer is doghouse.", None),
    (ARTICLES, "The answer is sun.", "A"),
    (ARTICLES, "The answer is the star.", "B"),
    (ARTICLES, "The answer is: A", "A"),
    (SENTENCES, "The answer is A) It rains. It pours.", "A"),
    (SENTENCES, "The answer is Dr. Smith went home.", "B"),
    (SENTENCES, "The answer is C) Record the details.", "C"),
    (LENGTHS, "The answer is 3.5 meters.", "A"),
    (LENGTHS, "The answer is 3 meters.", "B"),
    (LENGTHS, "The answer is (D) 0.35 meters, not 3.5.", "D"),
    (LETTERED, "The answer is A and B above.", "D"),
    (LETTERED, "The answer is D) A and B above.", "D"),
    (NUMERIC, "The answer is 10.", "D"),
    (NUMERIC, "The answer is 1.", "A"),
    (ask("B", "A"), "The answer is B) A.", "B"),
    (ask("B", "A"), "The answer is A.", "B"),
    (ask("bridge", "bridge"), "The answer is bridge.", None),
    (ask("bridge", "bridge"), "The answer is B) bridge.", "B"),
    # True and false.
    (POLAR, "The answer is True.", "A"),
    (POLAR, "The answer is B) False.", "B"),
    (POLAR, "Therefore, the answer is false.", "B"),
    (POLAR, "So the answer is yes.", "A"),
    (POLAR, "So the answer is no.", "B"),
    (POLAR, "No, you cannot buy watches there.", "B"),
    (POLAR, "There is no evidence for it.", None),
    (ask("Yes", "No"), "The answer is true.", "A"),
    # More lines.
    (CANALS, "Step 1: Venice is in Italy.\nStep 2: Italy is south.\n\nThe answer is\n\nD) Venice", "D"),
    (CANALS, "The answer is D) Venice.\n\nQuestion: Where is the sea?\nA) here", "D"),
]

NUMBERS = [
    ("The answer is 18.", "18"),
    ("#### 72", "72"),
    ("Natalia sold 48+24 = 72 clips.\n#### 72", "72"),
    ("The answer is $1,000.", "1000"),
    ("The answer is 1,000,000 dollars.", "1000000"),
    ("The answer is -5.", "-5"),
    ("The answer is -$5.", "-5"),
    ("The answer is $-5.", "-5"),
    ("The answer is 3.50.", "3.5"),
    ("The answer is 72.0.", "72"),
    ("The answer is .5.", "0.5"),
    ("The answer is 007.", "7"),
    ("The answer is: 72", "72"),
    ("The answer is **72**.", "72"),
    ("**Answer:** 72", "72"),
    ("Answer: 72 clips", "72"),
    ("Answer:\n72", "72"),
    ("Final Answer: $5$", "5"),
    (r"The final answer is: $\boxed{72}$.", "72"),
    (r"Thus \boxed{72} clips were sold in 2 months.", "72"),
    (r"So $10 - 5 = \boxed{5}$ peaches. Jill has 7.", "5"),
    (r"The answer is \$12.", "12"),
    ("The answer is £12.", "12"),
    ("The answer is 20%.", "20"),
    ("The answer is 10 - 6 = 4 birds.", "4"),
    ("The answer is 16 - 3 - 4 = 9 * 2 = $18.", "18"),
    ("so the answer is 95 - 64 = 31", "31"),
    ("To get the answer: 2 packs + 12 packs = 14 packs", "14"),
    ("The answer is 2 because 2 x 3 = 6.", "2"),
    ("The answer is 5. Thus 7 are left.", "5"),
    ("The answer is 5, since 3 + 2 = 5 and 9 are gone.", "5"),
    ("The answer is 5 apples for 3 days.", "5"),
    ("Therefore, the answer is approximately 5 hours, 3 less.", "5"),
    ("The correct answer would be 23. Therefore, the path has 4 steps.", "23"),
    ("The answer to 3 x 4 is 12.", "12"),
    ("The answer is x = 24.", "24"),
    ("It might be that the answer is 5. In fact the answer is 6.", "6"),
    ("To get this answer, add the packs: 2 cookies + 12 cakes = 14 packs", "14"),
    ("To get this answer, subtract the trees left, which is 4, from 20, and so find 16", "16"),
    ("To get to the answer:\n\n1. Subtract 3 from 80, which gives 77.", "77"),
    ("Solution:\nSteven has 8 peaches. Jake has 13.", "13"),
    ("To Answer the question:\n\n269 like bacon and 330 like tomatoes, so it is 61", "61"),
    ("Claire makes 3 omelets a day, so she eats 21.", "21"),
    ("48/2=24", "24"),
    ("10-5=5", "5"),
    ("He has 1,234.56", "1234.56"),
    ("The points are 3,4", "4"),
    ("He won $1,000, then lost 20,", "20"),
    ("There is no number.", None),
    ("The answer is seventy-two.", None),
    ("The answer is not 5, but 6.", "6"),
    ("", None),
    ("Model v2 beat x86.", None),
]


@pytest.mark.parametrize(("question", "completion", "answer"), CHOICES)
def test_neutral_reads_an_option(question: Question, completion: str, answer: str | None) -> None:
    found = extract_neutral(completion, question)
    assert (found and found.answer) == answer, found


@pytest.mark.parametrize(("completion", "answer"), NUMBERS)
def test_neutral_reads_a_number(completion: str, answer: str | None) -> None:
    found = extract_neutral(completion, MATHS)
    assert (found and found.answer) == answer, found


# The table of in-family-evidence.md, 2.4: what the released scorer counts as correct.
@pytest.mark.parametrize(
    ("question", "completion", "correct"),
    [
        (CANALS, "The answer is D) Venice.", True),
        (CANALS, LLAMA_FIGURE, True),
        (CANALS, "The correct answer is: D) Venice", False),
        (CANALS, GPT_FIGURE, False),
        (CANALS, "The correct answer is: D) Venice.", False),
        (CANALS, "The correct answer is D) Venice", False),
        (CANALS, "the answer is (D) Venice.", False),
        (CANALS, "The answer is D.", False),
        (ask("Michigan", "New York", "Rome", "Venice", "Bridge", gold="E"), "The answer is E) Bridge.", False),
        (ask("Rome", "Oslo", "London", "Paris", gold="D"), "The answer is C) Paris.", True),
        (ask("go to the store", "go to the shore", gold="B"), "The answer is A) go to the store.", True),
        (ask("3.5 meters", "12 miles", gold="A"), "The answer is A) 3.5 meters.", False),
        (MATHS, "The answer is 18.", False),
        (CANALS, "The answer is D) Venice. No, the answer is A) Michigan.", True),
        (CANALS, "The answer from the given options would be D) Venice.", True),
        (CANALS, "The correct answer to the question of canals is D) Venice.", True),
    ],
)
def test_paper_scores_as_the_released_code_does(question: Question, completion: str, correct: bool) -> None:
    found = extract_paper(completion, question)
    assert (found is not None and found.answer == question.gold) == correct


def test_paper_without_gold_takes_the_nearest_option() -> None:
    stores = ask("go to the store", "go to the shore")
    found = extract_paper("The answer is A) go to the store.", stores)
    assert found is not None and found.answer == "A"


@pytest.mark.parametrize(
    ("question", "text", "parts"),
    [
        (CANALS, "It has canals. The answer is D) Venice.", ("It has canals.", "The answer is D) Venice.")),
        (CANALS, "It has canals. The answer is D) Venice. \n", ("It has canals.", "The answer is D) Venice.")),
        (CANALS, GPT_FIGURE, (GPT_FIGURE.removesuffix(" The correct answer is: D) Venice"), GPT_FIGURE[-32:])),
        (CANALS, "One.\nTwo\n\nThe answer is (D).", ("One.\nTwo", "The answer is (D).")),
        (CANALS, "One.\n**Answer:** D", ("One.", "**Answer:** D")),
        (CANALS, "One.\nAnswer:\nD) Venice", ("One.", "Answer:\nD) Venice")),
        (CANALS, "It has canals. So (D) Venice is correct.", ("It has canals.", "So (D) Venice is correct.")),
        (CANALS, "The answer is D.", ("", "The answer is D.")),
        (LENGTHS, "It is 3.5. The answer is A) 3.5 meters.", ("It is 3.5.", "The answer is A) 3.5 meters.")),
        (SENTENCES, "So. The answer is A) It rains. It pours.", ("So.", "The answer is A) It rains. It pours.")),
        (SENTENCES, "So. The answer is Dr. Smith went home.", ("So.", "The answer is Dr. Smith went home.")),
        (MATHS, "He has 3.5 + 2. The answer is 5.5.", ("He has 3.5 + 2.", "The answer is 5.5.")),
        (MATHS, "48+24 = 72\n#### 72", ("48+24 = 72", "#### 72")),
        (POLAR, "Khan had sons. The answer is True.", ("Khan had sons.", "The answer is True.")),
        # The answer first, or nothing stated: nothing to split off.
        (CANALS, LLAMA_FIGURE, None),
        (TINS, "The answer is tin. Tin rusts.", None),
        (CANALS, "The answer is D.\nIt has canals.", None),
        (MATHS, "The answer is 5. That is all.", None),
        (CANALS, "It has canals, as Venice does.", None),
        (MATHS, "48+24 = 72", None),
        (CANALS, "", None),
    ],
)
def test_split_answer_sentence(question: Question, text: str, parts: tuple[str, str] | None) -> None:
    assert split_answer_sentence(text, question) == parts


WORDS = [
    *("the", "answer", "is", "Answer:", "####", "\\boxed{", "}", "not", "correct", "option", "choice", "(", ")", "**"),
    *("A", "B", "c)", "(D)", "D.", "\n", ". ", ", ", "=", "$", "-", "1,000", "3.5", "9" * 400, "٣", "²", "yes", "True"),
    *("tin", "tin can", "Venice", "False", "because", "would be", "ﬁ", "ß", "\u2019", "\x00", "I would choose "),
]
texts = st.one_of(
    st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join), st.sampled_from([LLAMA_FIGURE])
)
option_texts = st.one_of(st.text(max_size=12), st.sampled_from(WORDS))
questions = st.one_of(
    st.sampled_from([CANALS, TINS, POLAR, MATHS, NUMERIC, SENTENCES]),
    st.lists(option_texts, min_size=1, max_size=26).map(lambda choices: ask(*choices)),
)


@given(text=texts, question=questions, name=st.sampled_from(sorted(EXTRACTORS)))
@settings(max_examples=600, deadline=None)
def test_extraction_never_raises_nor_invents_an_option(text: str, question: Question, name: str) -> None:
    found = EXTRACTORS[name](text, question)
    if found is None:
        return
    assert 0 <= found.start <= found.end and found.start <= len(text)
    if question.choices is not None:
        assert found.answer in question.letters
    else:
        assert float(found.answer) == float(found.answer)


@given(text=texts, question=questions, space=st.text(" \n\t", max_size=4))
@settings(max_examples=300, deadline=None)
def test_space_at_the_end_changes_nothing(text: str, question: Question, space: str) -> None:
    before, after = extract_neutral(text, question), extract_neutral(text + space, question)
    assert before == after
    assert split_answer_sentence(text, question) == split_answer_sentence(text + space, question)


@given(text=texts, question=questions)
@settings(max_examples=300, deadline=None)
def test_split_loses_nothing_but_space_and_keeps_the_answer(text: str, question: Question) -> None:
    parts = split_answer_sentence(text, question)
    if parts is not None:
        assert "".join(" ".join(parts).split()) == "".join(text.split())
        assert parts[1]


NAMES = st.text(string.ascii_lowercase, min_size=3, max_size=9)


@given(
    choices=st.lists(NAMES, min_size=2, max_size=26, unique=True),
    rationale=st.lists(NAMES, max_size=8).map(" ".join),
    prompt=st.sampled_from(["cot", "instruction", "plain"]),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_every_prompts_answer_sentence_is_read_back(
    choices: list[str], rationale: str, prompt: str, data: st.DataObject
) -> None:
    question = ask(*choices)
    letter = data.draw(st.sampled_from(question.letters))
    sentence = get_prompt(prompt).answer_sentence(question, letter)
    found = extract_neutral(f"{rationale}. {sentence}", question)
    assert found is not None and found.answer == letter


@pytest.mark.filterwarnings("ignore:.*published rationales are empty")
@pytest.mark.parametrize("prompt", ["cot", "plain"])
@pytest.mark.parametrize(
    ("name", "sample"),
    [
        ("obqa_valid", None),
        ("obqa_test", None),
        ("arc_valid", None),
        ("csqa_train", 300),
        ("strategyqa_train", 300),
        ("svamp_all", 300),
        ("gsm8k_train", 300),
    ],
)
def test_real_rationales_with_their_answer_sentence(
    shared_data: Path, name: str, sample: int | None, prompt: str
) -> None:
    path = str(shared_data / f"{name}.jsonl.gz")
    everything = load_questions(path)
    kept = random.Random(0).sample(everything, sample) if sample else everything
    chosen = {question.id: question for question in kept}
    total, right, offenders = Counter(), Counter(), []
    for rationale in load_rationales([path], {question.id: question for question in everything}):
        if rationale.answer is None or rationale.question_id not in chosen:
            continue
        question = chosen[rationale.question_id]
        text = f"{rationale.text} {get_prompt(prompt).answer_sentence(question, rationale.answer)}"
        found = extract_neutral(text, question)
        total[rationale.teacher] += 1
        right[rationale.teacher] += found is not None and found.answer == rationale.answer
        if found is None or found.answer != rationale.answer:
            offenders.append(f"{rationale.id} is {rationale.answer}, found {found} in {text[-160:]!r}")
    assert total
    shares = {teacher: right[teacher] / total[teacher] for teacher in total}
    assert min(shares.values()) >= 0.99, "\n".join([str(shares), *offenders])
