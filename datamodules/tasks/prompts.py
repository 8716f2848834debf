"""Every prompt text, versioned: an id, and a hash that artefacts carry, so that an edited prompt is noticed."""

from dataclasses import dataclass, field, replace

from datamodules.files.atomic import hash_json
from datamodules.tasks.exemplars import EXEMPLARS
from datamodules.tasks.questions import AnswerKind, Question

TemplateOptions = dict[str, str | bool | int | float]
INSTRUCTIONS: dict[AnswerKind, str] = {
    "choice": "Choose the answer to the question only from options {letters}.",
    "boolean": "Choose the answer to the question only from options {letters}.",
    "number": "Answer the question with a number.",
    "expression": "Answer the question, and put the final answer in \\boxed{{}}.",
}
QUESTIONS: dict[AnswerKind, str] = {
    "choice": "Question: {question}\nChoices:\n{choices}",
    "boolean": "Question: {question}\nChoices:\n{choices}",
    "number": "Question: {question}",
    "expression": "Question: {question}",
}


def _fill(template: str, question: Question, rationale: str = "") -> str:
    lines = [f"{letter}) {choice}" for letter, choice in zip(question.letters, question.choices or (), strict=True)]
    return template.format(
        question=question.question,
        choices="\n".join(lines),
        letters=", ".join(question.letters),
        rationale=rationale,
    )


@dataclass(frozen=True)
class Prompt:
    """One way to pose a question and to state its answer.

    Attributes:
        name: What a config names.
        texts: For each kind of answer, the template: `{question}`, `{choices}`, `{letters}`, and `{rationale}` if it
            asks for a rationale to be rewritten.
        cue: Ends the prompt where the student reads raw text, and in a chat if `cue_in_chat`.
        cue_in_chat: A chat template marks the reply itself; then a bare `Answer:` is only noise.
        answer: The answer sentence of a multiple-choice question: `{letter}`, `{text}`.
        template_options: What the chat template is told beside the message, such as `enable_thinking`.
    """

    name: str
    texts: dict[AnswerKind, str]
    cue: str
    cue_in_chat: bool
    answer: str = "The answer is {letter}) {text}."
    template_options: TemplateOptions = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name and content hash, as artefacts record it."""
        *text, options = vars(self).values()
        return f"{self.name}-{hash_json([*text, options] if options else text)[:8]}"

    @property
    def rewrites(self) -> bool:
        """Whether it asks for a rationale to be rewritten."""
        return "{rationale}" in self.texts["choice"]

    def render(self, question: Question, chat: bool, rationale: str = "") -> str:
        """Returns what the model reads: the user's message of a chat, or raw text that ends with a newline.

        Raw text ends with a newline so that a completion starts a line, which every tokenizer splits the
        same way whatever follows.

        Args:
            question: The question.
            chat: Whether a chat template surrounds the text.
            rationale: What is to be rewritten.
        """
        text = _fill(self.texts[question.kind], question, rationale)
        if chat:
            return text + self.cue if self.cue_in_chat else text
        return text + self.cue + "\n"

    def answer_sentence(self, question: Question, answer: str) -> str:
        """Returns the sentence that ends a completion, for an option's letter, a number or an expression."""
        if question.expression:
            return f"The answer is $\\boxed{{{answer}}}$."
        if question.choices is None:
            return f"The answer is {answer}."
        # Many options (ARC's) are sentences; the template has the full stop.
        return self.answer.format(letter=answer, text=question.choice(answer).removesuffix("."))


def _with_instruction(instruction: str, body: str) -> dict[AnswerKind, str]:
    """Returns, for each kind, a template of which `{instruction}` and `{body}` are the kind's own."""
    return {
        kind: instruction.replace("{instruction}", INSTRUCTIONS[kind]) + body.replace("{body}", QUESTIONS[kind])
        for kind in INSTRUCTIONS
    }


# Ranaldi & Freitas (EACL 2024), their repository's figure; zero-shot, no exemplars. They print only the form for
# multiple choice; the other kinds' instructions are ours, under the same cue.
_COT = Prompt(
    name="cot",
    texts=_with_instruction("{instruction}\n", "{body}"),
    cue="\nAnswer: Let's think step-by-step",
    cue_in_chat=True,
)


def _write_exemplars(kind: AnswerKind) -> str:
    """Returns the worked examples of this kind, as part of a template."""
    texts = [
        f"{_fill(QUESTIONS[kind], question)}\nAnswer: {reasoning} {_COT.answer_sentence(question, answer)}"
        for question, reasoning, answer in EXEMPLARS[kind]
    ]
    return "\n\n".join(texts).replace("{", "{{").replace("}", "}}")


_PROMPTS = [
    _COT,
    # Chain of thought after Wei et al. (2022): fixed worked examples in the same form, then the question.
    Prompt(
        name="few_shot",
        texts={kind: f"{INSTRUCTIONS[kind]}\n\n{_write_exemplars(kind)}\n\n{QUESTIONS[kind]}" for kind in INSTRUCTIONS},
        cue="\nAnswer:",
        cue_in_chat=True,
    ),
    # The answer alone: the baseline that chain of thought is compared with.
    Prompt(
        name="direct",
        texts=_with_instruction("{instruction} Give only the answer, without an explanation.\n", "{body}"),
        cue="\nAnswer:",
        cue_in_chat=False,
    ),
    # The paper's student format: the fields Instruction, Input and Output. It does not print the wrapper
    # around the fields; plain headers are used.
    Prompt(
        name="instruction",
        texts=_with_instruction("Instruction: {instruction}\n", "Input: {body}"),
        cue="\nOutput:",
        cue_in_chat=False,
    ),
    # The same content in another's words, as a control.
    Prompt(
        name="paraphrase",
        texts=_with_instruction(
            "Rewrite the explanation in your own words. Keep its steps, their order and its answer, and add nothing.\n",
            "{body}\nExplanation: {rationale}",
        ),
        cue="\nThe explanation, rewritten:",
        cue_in_chat=False,
    ),
    # For models too small to read instructions, which find an option's text more easily than its letter.
    Prompt(
        name="plain",
        texts=QUESTIONS,
        cue="\nAnswer:",
        cue_in_chat=False,
        answer="The answer is {text}.",
    ),
]
PROMPTS = {prompt.name: prompt for prompt in _PROMPTS}


def get_prompt(name: str, rewrites: bool = False, template_options: TemplateOptions | None = None) -> Prompt:
    """Returns the prompt of this name.

    Args:
        name: The prompt's name.
        rewrites: Whether there are rationales to be rewritten, which only some prompts show, and those always.
        template_options: What a chat template is told beside the message; part of the prompt's id.

    Raises:
        ValueError: No prompt has this name, or it does not fit.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompt {name!r} is unknown; there are: {', '.join(PROMPTS)}")
    prompt = PROMPTS[name]
    if prompt.rewrites and not rewrites:
        raise ValueError(f"prompt {name!r} shows a rationale to be rewritten: set data.rewrites, in annotate")
    if rewrites and not prompt.rewrites:
        fitting = ", ".join(other.name for other in _PROMPTS if other.rewrites)
        raise ValueError(f"data.rewrites needs a prompt that shows rationales, not {name!r}; there are: {fitting}")
    return replace(prompt, template_options=template_options or {})
