"""The data module of an evaluation: questions, how each option is put, and teachers' rationales to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datamodules.annotation import PosedQuestion, QuestionDataModule, QuestionDraw
from datamodules.examples.encoding import Piece, encode_pieces, encode_texts, find_end_tokens, render_chat
from datamodules.examples.tokenization import Example, build_examples, encode_completions, split_completion
from datamodules.logit_cache.aligned import AlignedCache, AlignmentSettings
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import Rationale, drop_truncated, load_rationales
from datamodules.tasks.questions import load_questions
from datamodules.text.token_bytes import read_vocabulary

OptionText = Literal["sentence", "choice", "letter"]


@dataclass(frozen=True)
class Options:
    """A question's options as endings that a student gives a likelihood to.

    Attributes:
        texts: Of the endings, without what separates them from the prompt.
        prompt_ids: Token ids of what comes before.
        ending_ids: Token ids of each ending.
    """

    texts: list[str]
    prompt_ids: list[int]
    ending_ids: list[list[int]]

    @property
    def longest(self) -> int:
        """The length in tokens of the longest ending with what comes before."""
        return len(self.prompt_ids) + max(map(len, self.ending_ids), default=0)


@dataclass(frozen=True)
class Reference:
    """A teacher's rationale that a student's is compared with.

    Attributes:
        rationale: The rationale.
        example: The same, as the student would have been trained on it.
        cache: Where the teacher's distributions of it are; None if nowhere.
    """

    rationale: Rationale
    example: Example
    cache: LogitCache | AlignedCache | None


class EvaluationDataModule(QuestionDataModule):
    """Poses questions to a student.

    Attributes:
        num_completions: Of each question; set by the module that predicts.
        options: By question id, after `setup`; without endings where a question has no options.
        references: By question id, after `setup`; questions without any are left out.
    """

    def __init__(
        self,
        tokenizer: str,
        questions: list[str] | str,
        option_text: OptionText = "sentence",
        references: list[str] | None = None,
        teachers: list[str] | None = None,
        logits: list[str] | None = None,
        alignment: AlignmentSettings = AlignmentSettings(),  # noqa: B008 (frozen)
        keep_truncated: bool = False,
        **kwargs: Any,
    ):
        """Stores the settings; files are read in `setup`.

        Args:
            tokenizer: Hub id, local folder or GGUF file; the student's own by default.
            questions: A file, `task:NAME:SPLIT[:LANGUAGE][@FOLDER]`, or `microworld:SPLIT:NUMBER:SEED[:LANGUAGE]`; or a
                list of these.
            option_text: Which ending of the prompt stands for an option where likelihoods choose: sentence, the
                prompt's answer sentence and an end token, as students learn it; choice, the option's text, or letter,
                its letter, both tokenized and normalised as lm-evaluation-harness does it.
            references: Rationales to compare with, of teachers or of people: stores (parquet) and published
                collections (jsonl, jsonl.gz).
            teachers: Compare with these teachers' only; null takes all that the references hold.
            logits: Logit caches of the references, of which divergence and agreement are measured.
            alignment: How logits of a teacher with another tokenizer are compared: refuse, strict or bytes.
            keep_truncated: Compare with rationales, too, that were cut off where their teacher ran out of tokens.
            kwargs: See `QuestionDataModule`.
        """
        # A student is not asked to rewrite, and answers all.
        super().__init__(
            tokenizer, questions, rewrites=None, rewrites_of=None, keep_truncated=False, draw=QuestionDraw(), **kwargs
        )
        if logits and not references:
            raise ValueError("data.logits is given without data.references, the rationales whose logits they are")
        if alignment != AlignmentSettings() and not logits:
            raise ValueError("data.alignment is given without data.logits, and would be ignored")
        if alignment.kind == "chunks":
            raise ValueError("data.alignment.kind chunks has no distributions to compare with; set strict or bytes")
        if teachers and not references:
            raise ValueError("data.teachers is given without data.references, and would be ignored")
        if keep_truncated and not references:
            raise ValueError("data.keep_truncated is given without data.references, and would be ignored")
        self.option_text, self.keep_truncated, self.alignment = option_text, keep_truncated, alignment
        self.reference_paths, self.teachers, self.logit_paths = references or [], teachers, logits or []
        self.num_completions = 1
        self.options: dict[str, Options] = {}
        self.references: dict[str, list[Reference]] = {}

    def setup(self, stage: str) -> None:
        """Reads and tokenizes, once.

        Raises:
            ValueError: As `QuestionDataModule`; or references or caches do not fit the questions or the student.
        """
        if self.posed:
            return
        super().setup(stage)
        self.options = {identifier: self.put_options(posed) for identifier, posed in self.posed.items()}
        if self.reference_paths:
            self._read_references()

    def put_options(self, posed: PosedQuestion) -> Options:
        """Tokenizes the endings that stand for a question's options."""
        question = posed.question
        if self.option_text == "sentence":
            texts = [self.prompt.answer_sentence(question, letter) for letter in question.letters]
            encoded = encode_completions(self.tokenizer, [("", text) for text in texts])
            return Options(texts, posed.prompt_ids, [ids for ids, _ in encoded])
        texts = list(question.letters if self.option_text == "letter" else question.choices or ())
        # What lm-evaluation-harness does: a space, but none after a chat template; white space at the prompt's end
        # belongs to the ending; an ending's tokens are what the whole text has beyond the prompt's.
        if self.tokenizer.chat_template:
            *start, last = render_chat(self.tokenizer, self.prompt.render(question, True), self.prompt.template_options)
            begun = [*start, last._replace(text=last.text.rstrip())]
            before, *whole = encode_pieces(
                self.tokenizer, [begun, *([*start, last, Piece(text, is_template=False)] for text in texts)]
            )
        else:
            prompt = posed.text.removesuffix("\n") + " "
            asked = [prompt.rstrip(), *(prompt + text for text in texts)]
            before, *whole = (own.ids for own in encode_texts(self.tokenizer, asked, add_special_tokens=True))
        endings = [ids[len(before) :] for ids in whole]
        if not all(texts) or not all(endings):
            raise ValueError(f"question {question.id!r} has an empty option, which has no likelihood")
        return Options(texts, before, endings)

    def _read_references(self) -> None:
        paths = ", ".join(self.reference_paths)
        questions = {question.id: question for question in load_questions(self.questions_source)}
        rationales = load_rationales(self.reference_paths, questions)
        names = {rationale.teacher for rationale in rationales}
        if absent := sorted(set(self.teachers or []) - names):
            raise ValueError(f"{paths}: no rationale of {absent}; there are {sorted(names)}")
        kept = [
            rationale
            for rationale in drop_truncated(rationales, paths, self.keep_truncated)
            if rationale.question_id in self.posed
            and rationale.text.strip()
            and (self.teachers is None or rationale.teacher in self.teachers)
        ]
        if not kept:
            raise ValueError(f"{paths}: no rationale of the {len(self.posed)} questions that are asked")
        pairs = [(questions[rationale.question_id], rationale) for rationale in kept]
        examples = build_examples(self.tokenizer, self.prompt, pairs)
        caches: dict[str, LogitCache | AlignedCache] = {}
        for path in self.logit_paths:
            cache = LogitCache(Path(path))
            if cache.description.sparsity.kind == "labels":
                raise ValueError(f"{path}: kind labels has no distributions to compare with; name another cache")
            covered = [example for example in examples if example.id in cache]
            if not covered:
                raise ValueError(f"{path}: holds none of the {len(examples)} references' logits")
            reader = self._fit_cache(cache, covered)
            if twice := [example.id for example in covered if example.id in caches]:
                raise ValueError(f"{path}: the logits of {twice[0]!r} are also in another cache; name one of them")
            caches |= {example.id: reader for example in covered}
        for rationale, example in zip(kept, examples, strict=True):
            own = self.references.setdefault(rationale.question_id, [])
            own.append(Reference(rationale, example, caches.get(example.id)))

    def _fit_cache(self, cache: LogitCache, examples: Sequence[Example]) -> LogitCache | AlignedCache:
        """Returns a cache that was made of these examples, aligned with the student's tokenizer if it has another."""
        if self.alignment.kind == "refuse" or cache.shares_tokenizer(self.tokenizer):
            cache.check(str(self.tokenizer_name), self.tokenizer, self.prompt.id, examples)
            return cache
        ends = find_end_tokens(self.tokenizer)
        student = read_vocabulary(self.tokenizer, ends)
        aligned = AlignedCache.of_examples(cache, self.alignment, examples, student, ends[0])
        aligned.check_completions(examples)
        return aligned

    def collect_reference_texts(self) -> dict[str, dict[str, list[str]]]:
        """Returns the references' texts by question id and teacher, without the sentences that state their answers."""
        texts: dict[str, dict[str, list[str]]] = {}
        for identifier, references in self.references.items():
            for rationale in (reference.rationale for reference in references):
                text, _ = split_completion(self.posed[identifier].question, rationale, self.prompt)
                if text:
                    texts.setdefault(identifier, {}).setdefault(rationale.teacher, []).append(text)
        return texts

    @property
    def highest_id(self) -> int:
        """The highest token id of all prompts, options and references."""
        endings = [ids for own in self.options.values() for ids in own.ending_ids]
        examples = [own.example.token_ids.tolist() for references in self.references.values() for own in references]
        return max(super().highest_id, max(map(max, [*endings, *examples]), default=-1))

    def find_longest(self) -> int:
        """Returns the length in tokens of the longest reference with its prompt; 0 without references."""
        lengths = [len(own.example.token_ids) for references in self.references.values() for own in references]
        return max(lengths, default=0)

    def find_longest_options(self) -> int:
        """Returns the length in tokens of the longest option with its prompt; 0 without options."""
        return max((own.longest for own in self.options.values()), default=0)

    def count_tokens(self, question_id: str) -> int:
        """Returns what a question takes of a batch: its completions or its options, with the prompt before each."""
        options = self.options[question_id]
        return max(self.num_completions * super().count_tokens(question_id), len(options.ending_ids) * options.longest)
