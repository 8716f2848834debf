"""Every prompt text, versioned: an id, and a hash that artefacts carry, so that an edited prompt is noticed.

The words of each language are in `configs/languages`; how a prompt puts them together is here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from string import Formatter
from typing import Literal, NamedTuple

from datamodules.files.atomic import hash_json
from datamodules.tasks.questions import AnswerKind, Question
from datamodules.text.languages import ENGLISH, KINDS, get_language, resolve_tag

TemplateOptions = dict[str, str | bool | int | float]
PromptLanguage = Literal["question", "en"]


def _fill(template: str, question: Question, rationale: str = "", gold: str = "") -> str:
    lines = [f"{letter}) {choice}" for letter, choice in zip(question.letters, question.choices or (), strict=True)]
    return template.format(
        question=question.question,
        choices="\n".join(lines),
        letters=", ".join(question.letters),
        rationale=rationale,
        gold=gold,
    )


@dataclass(frozen=True)
class Prompt:
    """One way to pose a question and to state its answer.

    Attributes:
        name: What a config names.
        texts: For each kind of answer, the template: `{question}`, `{choices}`, `{letters}`, `{rationale}` if it asks
            for a rationale to be rewritten, or shows one, and `{gold}` if it shows the gold answer, as an answer
            sentence.
        cue: Ends the prompt where the student reads raw text, and in a chat if `cue_in_chat`.
        cue_in_chat: A chat template marks the reply itself; then a bare `Answer:` is only noise.
        answer: The answer sentence of a multiple-choice question: `{letter}`, `{text}`.
        template_options: What the chat template is told beside the message, such as `enable_thinking`.
        language: Whether a question is posed in its own language or with English instructions; worked examples and
            answer sentences are in the question's. The fields above are the English form.
        shown: By question's id, the rationales that it shows, if it does.
    """

    name: str
    texts: dict[AnswerKind, str]
    cue: str
    cue_in_chat: bool
    answer: str = "The answer is {letter}) {text}."
    template_options: TemplateOptions = field(default_factory=dict)
    language: PromptLanguage = "question"
    shown: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name and content hash, as artefacts record it; what it shows counts."""
        *text, options, language, shown = vars(self).values()
        chosen = [*([options] if options else []), *([language] if language != "question" else [])]
        chosen += [shown] if shown else []
        return f"{self.name}-{hash_json([*text, *chosen])[:8]}"

    def _word(self, question: Question) -> "_Wording":
        try:
            tag = resolve_tag(question.language)
        except ValueError as error:
            raise ValueError(f"{question.place or f'question {question.id!r}'}: {error}") from None
        if tag == ENGLISH:
            return _Wording(self.texts, self.cue, self.answer, *word_prompt(self.name, ENGLISH, ENGLISH)[3:])
        return word_prompt(self.name, tag, tag if self.language == "question" else ENGLISH)

    @property
    def rewrites(self) -> bool:
        """Whether it asks for a rationale to be rewritten."""
        return "{rationale}" in self.texts["choice"] and not self.shows_rationale

    @property
    def translates(self) -> bool:
        """Whether it asks for a rationale in the question's language, which then says what it said."""
        return self.name == "translate"

    @property
    def shows_gold(self) -> bool:
        """Whether it shows the gold answer, as a teacher may see it and a student never does."""
        return "{gold}" in self.texts["choice"]

    @property
    def shows_rationale(self) -> bool:
        """Whether it shows a teacher's rationale of the question, likewise."""
        return self.name.endswith(WITH_RATIONALE)

    def render(self, question: Question, chat: bool, rationale: str = "") -> str:
        """Returns what the model reads: the user's message of a chat, or raw text that ends with a newline.

        Raw text ends with a newline so that a completion starts a line, which every tokenizer splits the
        same way whatever follows.

        Args:
            question: The question.
            chat: Whether a chat template surrounds the text.
            rationale: What is to be rewritten.

        Raises:
            ValueError: It shows the gold answer or a rationale, and the question has none.
        """
        own = self._word(question)
        if self.shows_rationale:
            self.check_shown([question])
            rationale = self.shown[question.id]
        if self.shows_gold and question.gold is None:
            raise ValueError(
                f"{question.place or f'question {question.id!r}'}: has no gold answer, which prompt {self.name!r} shows"
            )
        gold = self.answer_sentence(question, question.gold) if self.shows_gold and question.gold is not None else ""
        text = _fill(own.texts[question.kind], question, rationale, gold)
        if chat:
            return text + own.cue if self.cue_in_chat else text
        return text + own.cue + "\n"

    def list_parts(self, kind: AnswerKind, chat: bool) -> list[tuple[str, str | None]]:
        """Returns what `render` makes of English questions of a kind, for programs that fill it in themselves.

        Args:
            kind: Of the answer.
            chat: Whether a chat template surrounds the text.

        Returns:
            Texts, and what follows each: `question`, `choices` or `letters`; None after the last.
        """
        parts = [(text, name) for text, name, _, _ in Formatter().parse(self.texts[kind])]
        cue = self.cue if self.cue_in_chat or not chat else ""
        return [*parts, (cue if chat else cue + "\n", None)]

    def check_shown(self, questions: Sequence[Question]) -> None:
        """Raises a ValueError if some of these questions have no rationale that it could show."""
        lacking = [question.id for question in questions if question.id not in self.shown]
        if lacking:
            raise ValueError(
                f"{len(lacking)} of {len(questions)} questions have no rationale that prompt {self.name!r} could show, "
                f"the first is {lacking[0]!r}; annotate them, or leave them out"
            )

    def answer_sentence(self, question: Question, answer: str) -> str:
        """Returns the sentence that ends a completion, for an option's letter, a number or an expression."""
        own = self._word(question)
        if question.choices is None:
            return (own.expression if question.expression else own.number).format(answer=answer)
        # Many options (ARC's) are sentences; the template has the full stop.
        return own.answer.format(letter=answer, text=question.choice(answer).removesuffix("."))


class _Wording(NamedTuple):
    """A prompt in one language: its texts by kind, its cue, and the answer sentences."""

    texts: dict[AnswerKind, str]
    cue: str
    answer: str
    number: str
    expression: str


# How a prompt puts a language's texts together, the cue it ends with, whether a chat has it, and the answer sentence.
_FORMS: dict[str, tuple[str, str, bool, str]] = {
    # Ranaldi & Freitas (EACL 2024), their repository's figure; zero-shot, no exemplars. They print only the form for
    # multiple choice; the other kinds' instructions are ours, under the same cue.
    "cot": ("<instruction>\n<body>", "step_by_step_cue", True, "choice"),
    # Chain of thought after Wei et al. (2022): fixed worked examples in the same form, then the question.
    "few_shot": ("<instruction>\n\n<exemplars>\n\n<body>", "answer_cue", True, "choice"),
    # The answer alone: the baseline that chain of thought is compared with.
    "direct": ("<instruction> <answer_only>\n<body>", "answer_cue", False, "choice"),
    # The paper's student format: the fields Instruction, Input and Output. It does not print the wrapper
    # around the fields; plain headers are used.
    "instruction": ("<instruction_label> <instruction>\n<input_label> <body>", "output_cue", False, "choice"),
    # The same content in another's words, as a control.
    "paraphrase": ("<rewrite>\n<body>\n<explanation>", "rewritten_cue", False, "choice"),
    # The same content in the question's language, as a control of an English pivot.
    "translate": ("<translate>\n<body>\n<explanation>", "translated_cue", False, "choice"),
    # For models too small to read instructions, which find an option's text more easily than its letter.
    "plain": ("<body>", "answer_cue", False, "text"),
}
WITH_GOLD, WITH_RATIONALE = "_with_gold", "_with_rationale"
# What a teacher with privileged context reads: the same, and below the question the gold answer, or a rationale.
PRIVILEGES = {WITH_GOLD: "the gold answer", WITH_RATIONALE: "a rationale"}
_FORMS |= {
    f"{name}{suffix}": (form.replace("<body>", f"<body>\n{shown}"), cue, in_chat, answer)
    for suffix, shown in ((WITH_GOLD, "{gold}"), (WITH_RATIONALE, "<explanation>"))
    for name, (form, cue, in_chat, answer) in _FORMS.items()
    if "<explanation>" not in form
}


def find_privilege(name: str) -> str | None:
    """Returns what a prompt of this name shows a teacher and never a student; None if nothing."""
    return next((shown for suffix, shown in PRIVILEGES.items() if name.endswith(suffix)), None)


@cache
def word_prompt(name: str, tag: str, instructions: str) -> _Wording:
    """Returns a prompt in a language.

    Args:
        name: Of the prompt.
        tag: The question's language, and that of worked examples and answer sentences.
        instructions: The language of everything else.
    """
    form, cue, _, answer = _FORMS[name]
    own, instructing = get_language(tag), get_language(instructions)
    texts: dict[AnswerKind, str] = {}
    for kind in KINDS:
        parts = dict(instructing.prompts)
        body = parts["question"] + ("\n" + parts["choices"] if kind in ("choice", "boolean") else "")
        parts |= {"instruction": parts[f"instruction_{kind}"], "body": body}
        if "<exemplars>" in form:
            parts["exemplars"] = _write_exemplars(kind, tag, body, parts["answer_cue"])
        text = form
        for part, content in parts.items():
            text = text.replace(f"<{part}>", content)
        texts[kind] = text
    answers = own.answers
    return _Wording(texts, "\n" + instructing.prompts[cue], answers[answer], answers["number"], answers["expression"])


@cache
def list_exemplars(kind: AnswerKind, tag: str) -> tuple[tuple[Question, str, str], ...]:
    """Returns a language's worked examples, none of them from a benchmark: the question, the reasoning, the answer."""
    return tuple(
        (
            Question(
                id=f"{kind}-{number}",
                task="exemplars",
                split="train",
                question=own.question,
                choices=own.choices,
                gold=own.answer,
                language=tag,
                expression=kind == "expression",
            ),
            own.reasoning,
            own.answer,
        )
        for number, own in enumerate(get_language(tag).exemplars[kind])
    )


def _write_exemplars(kind: AnswerKind, tag: str, body: str, cue: str) -> str:
    """Returns the worked examples of this kind, as part of a template."""
    answers = get_language(tag).answers
    texts = []
    for question, reasoning, answer in list_exemplars(kind, tag):
        if question.choices is None:
            sentence = answers["expression" if question.expression else "number"].format(answer=answer)
        else:
            sentence = answers["choice"].format(letter=answer, text=question.choice(answer))
        texts.append(f"{_fill(body, question)}\n{cue} {reasoning} {sentence}")
    return "\n\n".join(texts).replace("{", "{{").replace("}", "}}")


def _make_prompt(name: str) -> Prompt:
    english = word_prompt(name, ENGLISH, ENGLISH)
    return Prompt(name, english.texts, english.cue, _FORMS[name][2], english.answer)


@cache
def list_prompts() -> dict[str, Prompt]:
    """Returns all prompts by name."""
    return {name: _make_prompt(name) for name in _FORMS}


def get_prompt(
    name: str,
    rewrites: bool = False,
    template_options: TemplateOptions | None = None,
    language: PromptLanguage = "question",
    privileged: bool = False,
) -> Prompt:
    """Returns the prompt of this name.

    Args:
        name: The prompt's name.
        rewrites: Whether there are rationales to be rewritten, which only some prompts show, and those always.
        template_options: What a chat template is told beside the message; part of the prompt's id.
        language: Whether instructions are in a question's language or in English.
        privileged: Whether it may show the gold answer or a rationale, as to a teacher.

    Raises:
        ValueError: No prompt has this name, or it does not fit.
    """
    prompts = list_prompts()
    if name not in prompts:
        known = [own for own in prompts if privileged or find_privilege(own) is None]
        raise ValueError(f"prompt {name!r} is unknown; there are: {', '.join(known)}")
    prompt = prompts[name]
    if (shown := find_privilege(name)) is not None and not privileged:
        raise ValueError(f"prompt {name!r} shows {shown}, which only a teacher may see: cache_logits alone has it")
    if prompt.rewrites and not rewrites:
        raise ValueError(f"prompt {name!r} shows a rationale to be rewritten: set data.rewrites, in annotate")
    if rewrites and not prompt.rewrites:
        fitting = ", ".join(other.name for other in prompts.values() if other.rewrites)
        raise ValueError(f"data.rewrites needs a prompt that shows rationales, not {name!r}; there are: {fitting}")
    return replace(prompt, template_options=template_options or {}, language=language)
