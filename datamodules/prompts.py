"""Every prompt text, versioned: an id, and a hash that artefacts carry, so that an edited prompt is noticed."""

from dataclasses import dataclass

from datamodules.files import hash_json
from datamodules.questions import Question

INSTRUCTION = "Choose the answer to the question only from options {letters}."
MULTIPLE_CHOICE = "Question: {question}\nChoices:\n{choices}"


@dataclass(frozen=True)
class Prompt:
    """One way to pose a question and to state its answer.

    Attributes:
        name: What a config names.
        choice_text: Template of a multiple-choice question: `{question}`, `{choices}`, `{letters}`.
        open_text: Template of a question without options.
        cue: Ends the prompt where the student reads raw text, and in a chat if `cue_in_chat`.
        cue_in_chat: A chat template marks the reply itself; then a bare `Answer:` is only noise.
        answer: The answer sentence of a multiple-choice question: `{letter}`, `{text}`.
    """

    name: str
    choice_text: str
    open_text: str
    cue: str
    cue_in_chat: bool
    answer: str = "The answer is {letter}) {text}."

    @property
    def id(self) -> str:
        """Name and content hash, as artefacts record it."""
        return f"{self.name}-{hash_json([*vars(self).values()])[:8]}"

    def render(self, question: Question, chat: bool) -> str:
        """Returns what the model reads: the user's message of a chat, or raw text that ends with a newline.

        Raw text ends with a newline so that a completion starts a line, which every tokenizer splits the
        same way whatever follows.
        """
        if question.choices is None:
            text = self.open_text.format(question=question.question)
        else:
            lines = [f"{letter}) {choice}" for letter, choice in zip(question.letters, question.choices, strict=True)]
            text = self.choice_text.format(
                question=question.question, choices="\n".join(lines), letters=", ".join(question.letters)
            )
        if chat:
            return text + self.cue if self.cue_in_chat else text
        return text + self.cue + "\n"

    def answer_sentence(self, question: Question, answer: str) -> str:
        """Returns the sentence that ends a completion, for an option's letter or a number."""
        if question.choices is None:
            return f"The answer is {answer}."
        # Many options (ARC's) are sentences; the template has the full stop.
        return self.answer.format(letter=answer, text=question.choice(answer).removesuffix("."))


_PROMPTS = [
    # Ranaldi & Freitas (EACL 2024), their repository's figure; zero-shot, no exemplars. They print no form
    # for questions without options; `open_text` keeps the same cue.
    Prompt(
        name="cot",
        choice_text=f"{INSTRUCTION}\n{MULTIPLE_CHOICE}",
        open_text="Question: {question}",
        cue="\nAnswer: Let's think step-by-step",
        cue_in_chat=True,
    ),
    # The paper's student format: the fields Instruction, Input and Output. It does not print the wrapper
    # around the fields; plain headers are used.
    Prompt(
        name="instruction",
        choice_text=f"Instruction: {INSTRUCTION}\nInput: {MULTIPLE_CHOICE}",
        open_text="Instruction: Answer the question with a number.\nInput: Question: {question}",
        cue="\nOutput:",
        cue_in_chat=False,
    ),
    # For models too small to read instructions, which find an option's text more easily than its letter.
    Prompt(
        name="plain",
        choice_text=MULTIPLE_CHOICE,
        open_text="Question: {question}",
        cue="\nAnswer:",
        cue_in_chat=False,
        answer="The answer is {text}.",
    ),
]
PROMPTS = {prompt.name: prompt for prompt in _PROMPTS}


def get_prompt(name: str) -> Prompt:
    """Returns the prompt of this name.

    Raises:
        ValueError: No prompt has this name.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompt {name!r} is unknown; there are: {', '.join(PROMPTS)}")
    return PROMPTS[name]
