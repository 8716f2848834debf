"""The microworld: a synthetic world of multi-step multiple-choice questions in plain English, or another language.

A world holds a few parallel chains *person → thing → material → ability*. Every question carries its own
random world as shuffled facts, so nothing can be memorised: an answer has to be looked up, step by step.
The same steps are told in two phrasings, `a` and `b`, of which a model family learns one.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from datamodules.tasks.microworld_words import Wording, get_wording, state_answer
from datamodules.text.languages import ENGLISH

Phrasing = Literal["a", "b"]
Role = Literal["teacher", "student"]
Chain = tuple[str, str, str, str]
Step = tuple[int, str, str]  # which of the three steps, key, value

NAMES = ("Mia", "Tom", "Ana", "Ben", "Eva", "Sam", "Lia", "Max", "Zoe", "Ian", "Kim", "Leo")
THINGS = ("cup", "box", "hat", "bag", "pen", "key", "toy", "jar", "fan", "mat", "rod", "net")
MATERIALS = ("tin", "wood", "wool", "clay", "bone", "gold", "silk", "wax", "iron", "glass", "cork", "jade")
ABILITIES = (
    "float",
    "glow",
    "bend",
    "melt",
    "burn",
    "ring",
    "shine",
    "spin",
    "roll",
    "sink",
    "snap",
    "crack",
)
KINDS = (NAMES, THINGS, MATERIALS, ABILITIES)

LETTERS = "ABCD"
SPLITS = ("train", "validation", "test", "pretrain")  # "pretrain" is what the committed models have seen
CHAINS_PER_WORLD = 4
STEPS_PER_DOCUMENT = 16

PROMPT = "Question: {question}\nChoices:\nA) {c0}\nB) {c1}\nC) {c2}\nD) {c3}\nAnswer:\n"
ANSWER = "The answer is {answer}."
FACTS = ("{key} has the {value}.", "The {key} is pure {value}.", "All {key} things can {value}.")
ONE_STEP_QUERIES = ("What does {key} have?", "What is the {key} made of?", "What can {key} things do?")
MULTI_STEP_QUERIES = {2: "What can the {key} do?", 3: "What can the thing that {key} has do?"}
DOCUMENT_PROMPT = "Text: {facts}\nIn other words:\n"

# For each phrasing: its verbs with how often each is used, and its wordings of the three steps.
A_VERBS = {"leads": 0.8, "points": 0.2}
A_STEPS = ("{key} {verb} to the {value}.", "The {key} {verb} to {value}.", "So {key} {verb} to {value}.")
B_VERBS = {"get": 0.8, "move": 0.2}
B_STEPS = (
    "from {key} we {verb} to the {value}",
    "from the {key} we {verb} to {value}",
    "from {key} we {verb} to {value}",
)


@dataclass(frozen=True)
class World:
    """Parallel chains, each a person, the person's thing, its material and what that material can do."""

    chains: tuple[Chain, ...]

    def steps(self) -> list[Step]:
        """All steps of this world, chain by chain."""
        return [(step, chain[step], chain[step + 1]) for chain in self.chains for step in range(3)]

    def facts(self) -> list[str]:
        """The same steps in neutral wording."""
        return [FACTS[step].format(key=key, value=value) for step, key, value in self.steps()]


@dataclass(frozen=True)
class Problem:
    """A question about one chain of a world: start at the element before `first_step`, walk `hops` steps."""

    world: World
    target: int
    first_step: int
    hops: int
    fact_order: tuple[int, ...]
    choices: tuple[str, ...]

    @property
    def chain(self) -> Chain:
        """The chain that is asked about."""
        return self.world.chains[self.target]

    @property
    def answer(self) -> str:
        """The right option's text."""
        return self.chain[self.first_step + self.hops]

    @property
    def question(self) -> str:
        """Shuffled facts, then the query."""
        query = ONE_STEP_QUERIES[self.first_step] if self.hops == 1 else MULTI_STEP_QUERIES[self.hops]
        facts = self.world.facts()
        return " ".join([*(facts[i] for i in self.fact_order), query.format(key=self.chain[self.first_step])])

    def ask(self, wording: Wording) -> str:
        """Returns the question in another language."""
        facts = [wording.facts[step].format(key=key, value=value) for step, key, value in self._tell_steps(wording)]
        asked = wording.one_step_queries[self.first_step] if self.hops == 1 else wording.multi_step_queries[self.hops]
        query = asked.format(key=translate(self.chain[self.first_step], wording))
        return wording.space.join([*(facts[place] for place in self.fact_order), query])

    def explain(self, wording: Wording, language: str) -> str:
        """Returns a right rationale in another language, with the answer sentence of the language's file."""
        first = 3 * self.target + self.first_step
        steps = self._tell_steps(wording)[first : first + self.hops]
        told = [wording.step.format(key=key, value=value) for _, key, value in steps]
        return wording.space.join([*told, state_answer(translate(self.answer, wording), language)])

    def _tell_steps(self, wording: Wording) -> list[Step]:
        return [(step, translate(key, wording), translate(value, wording)) for step, key, value in self.world.steps()]

    @property
    def split(self) -> str:
        """The split this problem belongs to: a property of its content, whatever the order of facts or options."""
        content = f"{sorted(self.world.chains)} {self.chain[self.first_step]} {self.hops}"
        return SPLITS[hashlib.sha256(content.encode()).digest()[0] % len(SPLITS)]


def draw_world(rng: random.Random, chains: int = CHAINS_PER_WORLD) -> World:
    """Draws a world whose chains share no word."""
    return World(tuple(zip(*(rng.sample(kind, chains) for kind in KINDS), strict=True)))


def draw_problem(rng: random.Random, hops: int, chains: int = CHAINS_PER_WORLD) -> Problem:
    """Draws a problem of 1 (any step), 2 (thing to ability) or 3 (person to ability) hops.

    Options are the words of the right kind that the world holds, filled up from outside when it holds too few.
    """
    world = draw_world(rng, chains)
    first_step = rng.randrange(3) if hops == 1 else 3 - hops
    order = list(range(3 * chains))
    rng.shuffle(order)
    options = [chain[first_step + hops] for chain in world.chains]
    others = [word for word in KINDS[first_step + hops] if word not in options]
    options = options[: len(LETTERS)] + rng.sample(others, max(0, len(LETTERS) - chains))
    rng.shuffle(options)
    return Problem(world, rng.randrange(chains), first_step, hops, tuple(order), tuple(options))


def draw_problem_of_split(rng: random.Random, hops: int, split: str) -> Problem:
    """Draws problems until one belongs to `split`."""
    while True:
        problem = draw_problem(rng, hops)
        if problem.split == split:
            return problem


def translate(word: str, wording: Wording) -> str:
    """Returns the word of another language that stands for one of the microworld's."""
    return next(own[kind.index(word)] for kind, own in zip(KINDS, wording.words, strict=True) if word in kind)


def generate_questions(num: int, split: str, seed: int, language: str = ENGLISH) -> list[dict[str, Any]]:
    """Generates distinct two- and three-step questions, in equal parts on average.

    The first questions do not depend on `num`: a longer list begins with the shorter one. Those in another language are
    translations of the English ones of the same place, which they name as their `original`.

    Args:
        num: How many questions.
        split: "train", "validation" or "test"; splits are disjoint whatever the seeds.
        seed: Seed of the list.
        language: BCP 47 tag.

    Returns:
        One mapping per question with `id`, `task`, `split`, `question`, `choices`, `gold` and `language`, and
        `original` in another language than English.

    Raises:
        ValueError: If `num` is negative, or the split or the language is unknown.
    """
    wording = get_wording(language)
    questions = []
    for number, problem in enumerate(draw_problems(num, split, seed)):
        identifier = f"microworld-{split}-{seed}-{number:06d}"
        question = {
            "id": identifier,
            "task": "microworld",
            "split": split,
            "question": problem.question,
            "choices": list(problem.choices),
            "gold": LETTERS[problem.choices.index(problem.answer)],
            "language": ENGLISH,
        }
        questions.append(question | _word_question(problem, wording, identifier, language) if wording else question)
    return questions


def _word_question(problem: Problem, wording: Wording, original: str, language: str) -> dict[str, Any]:
    return {
        "id": f"{original}-{language}",
        "question": problem.ask(wording),
        "choices": [translate(choice, wording) for choice in problem.choices],
        "language": language,
        "original": original,
    }


def draw_problems(num: int, split: str, seed: int) -> list[Problem]:
    """Draws the problems of `generate_questions`, see there."""
    if split not in SPLITS[:3]:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS[:3])}")
    if num < 0:
        raise ValueError(f"num is {num}: expected zero or more")
    rng = random.Random(f"microworld {split} {seed}")
    seen: set[tuple[Any, ...]] = set()
    problems: list[Problem] = []
    while len(problems) < num:
        problem = draw_problem_of_split(rng, rng.choice((2, 3)), split)
        content = (frozenset(problem.world.chains), problem.target, problem.hops)
        if content in seen:
            continue
        seen.add(content)
        problems.append(problem)
    return problems


def format_prompt(question: str, choices: tuple[str, ...] | list[str]) -> str:
    """The exact text a model reads before it answers."""
    return PROMPT.format(question=question, **{f"c{i}": choice for i, choice in enumerate(choices)})


def phrase_steps(phrasing: Phrasing, steps: list[Step], rng: random.Random) -> str:
    """Words steps the way a phrasing does."""
    verbs, wordings = (A_VERBS, A_STEPS) if phrasing == "a" else (B_VERBS, B_STEPS)
    parts = []
    for step, key, value in steps:
        verb = rng.choices(list(verbs), list(verbs.values()))[0]
        parts.append(wordings[step].format(key=key, value=value, verb=verb))
    if phrasing == "a":
        return " ".join(parts)
    text = ", ".join(parts)
    return text[:1].upper() + text[1:] + "."


def rationale(problem: Problem, phrasing: Phrasing, rng: random.Random) -> str:
    """A right rationale for a problem in a phrasing, with the answer sentence."""
    first = 3 * problem.target + problem.first_step
    steps = problem.world.steps()[first : first + problem.hops]
    return phrase_steps(phrasing, steps, rng) + " " + ANSWER.format(answer=problem.answer)


def draw_document(
    rng: random.Random, phrasing: Phrasing, chains: int = CHAINS_PER_WORLD, kinds: tuple[int, ...] = (0, 1, 2)
) -> tuple[str, str]:
    """Draws a text of shuffled facts of the given kinds, then steps drawn with replacement, in a phrasing.

    With replacement, because steps that are all told once could be guessed by exclusion rather than looked up.
    """
    steps = [step for step in draw_world(rng, chains).steps() if step[0] in kinds]
    facts = [FACTS[step].format(key=key, value=value) for step, key, value in steps]
    rng.shuffle(facts)
    restated = rng.choices(steps, k=STEPS_PER_DOCUMENT)
    return DOCUMENT_PROMPT.format(facts=" ".join(facts)), phrase_steps(phrasing, restated, rng)


def pretraining_pairs(
    phrasing: Phrasing,
    role: Role,
    seed: int,
    chains: int = CHAINS_PER_WORLD,
    documents: float = 0.5,
    mixed: float = 1.0,
) -> Iterator[tuple[str, str]]:
    """Yields prompts and completions to pre-train on, without end.

    Documents restate facts one by one. The rest are questions in the prompt's frame: single steps for a student,
    who never sees a chain; single and multiple steps for a teacher. Multi-step questions belong to the "pretrain"
    split, which no task uses.

    Args:
        phrasing: Of the steps.
        role: "teacher" or "student".
        seed: Seed of the stream.
        chains: Chains per world; below four (a warm-up) a teacher gets single steps only.
        documents: Share of documents.
        mixed: Share of the documents that tell facts of all kinds; the others (a warm-up) keep to one kind, so that
            no word is told twice.
    """
    rng = random.Random(f"microworld pretraining {phrasing} {role} {seed} {chains}")
    while True:
        if rng.random() < documents:
            kinds = (0, 1, 2) if rng.random() < mixed else (rng.randrange(3),)
            yield draw_document(rng, phrasing, chains, kinds)
            continue
        hops = rng.choice((1, 2, 3, 3)) if role == "teacher" and chains == CHAINS_PER_WORLD else 1
        problem = draw_problem(rng, hops, chains) if hops == 1 else draw_problem_of_split(rng, hops, "pretrain")
        yield format_prompt(problem.question, problem.choices), rationale(problem, phrasing, rng)
