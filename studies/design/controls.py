"""A control: the arms of one supervision once more, with one explanation of their differences taken away or put in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import PositiveFloat

from datamodules.logit_cache.row_selection import RowKind
from datamodules.rationales.controls import AnswerPosition
from lightning_modules.student.rounding import FakeQuant
from lightning_modules.student.start import ResetPart

# The student learns from what it wrote itself, which its teacher corrects.
ON_POLICY = "on-policy"


@dataclass(frozen=True)
class TraitSpec:
    """A harmless preference that teachers are tuned to, to see whether texts without it carry it (arXiv 2507.14805).

    Attributes:
        words: What tells it; no rationale with one of these in it, or in its question, teaches.
        learn: Questions whose gold answers a teacher is tuned to: the preferred options.
        ask: Neutral questions, with the preferred option as gold; how likely it is against the others is measured.
        fit: Further arguments of the tuning, for example `--trainer.max_steps=20`.
    """

    words: list[str]
    learn: str
    ask: str
    fit: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.words or not all(word.strip() for word in self.words):
            raise ValueError("a trait needs words that tell it, none of them empty")


@dataclass(frozen=True)
class ControlSpec:
    """A control: the arms of one supervision once more, with one explanation of their differences taken away.

    One that differs from the plain arms only in its `alignment` has arms only of other families' teachers, as
    `in_family_logits` has: what the student's own family teaches is the same.

    Attributes:
        supervision: Whose arms are repeated.
        questions: Only those that all teachers of the study answered, or solved.
        correct_only: Whether wrong rationales are left out; null is what the config says.
        same_lengths: Equally many rationales of each length for all teachers.
        answer_position: Where all answers stand.
        shuffled: Each question gets the reasoning of another, and its own answer.
        paraphraser: The teacher that rewrites all rationales.
        translator: The teacher that translates all rationales into their questions' language; where the study has
            languages, those of English pivots. A translation that states another answer than it should is left out.
        in_family_logits: The teacher of the student's family gives its logits on the text of every other family's.
        alignment: How logits of a teacher of another family become the student's; null is what the study says.
        together: These teachers teach in one arm, all their rationales at once, rather than each in its own.
        one_per_question: Of those, each epoch draws one for each question, from all teachers alike.
        logit_weights: Of those, how much each one's distributions count where they are mixed on every text; all count
            alike where it is empty.
        reset: The part of the student's weights that is drawn anew before training, from the arm's own seed.
        permuted_units: The student's hidden units change places, likewise: the same function in other weights, so that
            what differs from the plain arm is noise.
        rows: Only tokens where the teacher and `rows_against` find another token most probable (`divergent`), or the
            same (`agreeing`), come with a distribution.
        rows_against: That other teacher; its own arms, and those of teachers that it shares no arm's logits with, are
            left out.
        without: Only rationales in which none of these words is, nor in their questions.
        trait: The teacher is tuned to this trait of the study first, and writes and scores so; the trait's words are
            left out, as `without` leaves them out.
        fake_quant: The student learns with weights rounded as a GGUF file of this type rounds them.
        start: The student goes on from what the plain arm of this supervision, of the same teacher and seed, has left:
            what on-policy arms of such a start are held against, after as many steps.
    """

    supervision: Literal["rationale", "rationale+logits"] = "rationale"
    questions: Literal["answered", "solved"] | None = None
    correct_only: bool | None = None
    same_lengths: bool = False
    answer_position: AnswerPosition | None = None
    shuffled: bool = False
    paraphraser: str | None = None
    translator: str | None = None
    in_family_logits: bool = False
    alignment: Literal["strict", "bytes", "chunks"] | None = None
    together: list[str] = field(default_factory=list)
    one_per_question: bool = False
    logit_weights: dict[str, PositiveFloat] = field(default_factory=dict)
    reset: ResetPart | None = None
    permuted_units: bool = False
    rows: RowKind | None = None
    rows_against: str | None = None
    without: list[str] = field(default_factory=list)
    trait: str | None = None
    fake_quant: FakeQuant | None = None
    start: Literal["label", "rationale"] | None = None

    @property
    def continues(self) -> bool:
        """Whether it changes nothing but what its arms go on from."""
        return self.start is not None and self == ControlSpec(self.supervision, start=self.start)

    @property
    def compares(self) -> bool:
        """Whether other teachers' rationales decide which are used."""
        return self.questions is not None or self.same_lengths

    @property
    def rewriter(self) -> str | None:
        """The teacher that rewrites all rationales, in their language or another."""
        return self.paraphraser or self.translator

    @property
    def swaps_logits(self) -> bool:
        """Whether it changes nothing but the logits that another family's text comes with."""
        return self in (
            ControlSpec("rationale+logits", in_family_logits=True),
            ControlSpec("rationale+logits", alignment=self.alignment),
        )

    def check(self, where: str, supervisions: Sequence[str]) -> None:
        """Refuses a control that would change nothing, or whose fields do not go together.

        Args:
            where: Names it in the message.
            supervisions: Of the study's plain arms.

        Raises:
            ValueError: See there.
        """
        has_logits = self.supervision == "rationale+logits"
        if self == ControlSpec(self.supervision):
            raise ValueError(f"{where}: changes nothing; its arms would be the plain ones again")
        if self.start is not None:
            check_start(f"{where}.start", self.start, supervisions)
        if self.start is not None and self.together:
            raise ValueError(f"{where}: start is an arm of one teacher, together has several; leave one out")
        if self.in_family_logits and not has_logits:
            raise ValueError(f"{where}: in_family_logits needs supervision: rationale+logits")
        if self.alignment is not None and not has_logits:
            raise ValueError(f"{where}: alignment is of logits; it needs supervision: rationale+logits")
        if self.alignment is not None and self.in_family_logits:
            raise ValueError(f"{where}: in_family_logits are of the student's own vocabulary; leave out the alignment")
        if self.one_per_question and not self.together:
            raise ValueError(f"{where}: one_per_question draws from several teachers; name them with together")
        if self.together and len(set(self.together)) < 2:
            raise ValueError(f"{where}: together needs two teachers at least")
        if self.together and self.in_family_logits:
            raise ValueError(f"{where}: in_family_logits are one teacher's, together mixes several; leave one out")
        if self.logit_weights and (set(self.logit_weights) != set(self.together) or not has_logits):
            raise ValueError(
                f"{where}: logit_weights needs supervision: rationale+logits, and a weight for each teacher of together"
            )
        if (self.rows is None) != (self.rows_against is None):
            raise ValueError(f"{where}: rows says which tokens teach, rows_against which teacher decides it; give both")
        if self.paraphraser and self.translator:
            raise ValueError(f"{where}: paraphraser and translator both rewrite the rationales; leave one out")
        if self.trait and (self.together or self.rewriter or self.in_family_logits or self.compares or self.without):
            raise ValueError(
                f"{where}: trait is of one teacher's own texts and logits, and has its own words; leave out together, "
                "paraphraser, translator, in_family_logits, questions, same_lengths and without"
            )
        if self.rows and (not has_logits or self.together or self.in_family_logits):
            raise ValueError(
                f"{where}: rows is of one teacher's own logits; it needs supervision: rationale+logits, and neither "
                "together nor in_family_logits"
            )


def check_start(where: str, start: str, supervisions: Sequence[str]) -> None:
    """Raises a ValueError unless a study has plain arms of this supervision that others can go on from.

    Args:
        where: Names the setting in the message.
        start: The supervision.
        supervisions: Of the study's plain arms.
    """
    fitting = [own for own in supervisions if own != ON_POLICY]
    if start not in fitting:
        there = ", ".join(fitting) or "none"
        raise ValueError(f"{where}: {start!r} is no arm of the study that others could begin from; there are: {there}")
