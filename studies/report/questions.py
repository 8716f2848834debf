"""Every question of a study with all that was written about it, for the page's browser of questions."""

from datamodules.tasks.questions import format_question
from datamodules.text.plain_text import clean, shorten
from studies.report.document import Asked, Block, Browser, Text, Writing
from studies.report.records import StudyRecords
from studies.report.words import plural

# Of all texts together: the page stays one that a mail or an issue takes, and that a phone opens.
MAX_CHARACTERS = 12_000_000
_LENGTHS = (4000, 1500, 500, 150, 40)


def browse_questions(records: StudyRecords) -> list[Block]:
    """Returns the held-out questions with the students' answers, and the training questions with the teachers'."""
    questions: dict[str, Asked] = {}
    authors = dict[str, None]()

    def ask(question_id: str, gold: str | None, is_held_out: bool) -> Asked:
        question = records.questions.get(question_id)
        text = format_question(question) if question else question_id
        return questions.setdefault(question_id, Asked(question_id, text, gold, is_held_out, {}))

    for row in (row for rows in records.answers for row in rows):
        author = row["run"].removesuffix("-seed0")
        authors[author] = None
        writing = Writing(author, row["completion"], row["answer_neutral"], row["correct_neutral"])
        ask(row["question_id"], row["gold"], True).writings[author] = writing
    students = [*authors]
    for item in records.written:
        author = f"teacher {item.teacher}"
        authors[author] = None
        question = records.questions.get(item.question_id)
        writing = Writing(author, item.text, item.answer, item.correct, item.family)
        ask(item.question_id, question.gold if question else None, False).writings[author] = writing
    if not questions:
        return []
    shown, length = _shorten([*questions.values()])
    held_out = sum(item.is_held_out for item in shown)
    caption = (
        f"All {plural(held_out, 'held-out question')} with the answers of {plural(len(students), 'arm')}, and "
        f"{plural(len(shown) - held_out, 'training question')} with what the teachers wrote; where one wrote on a "
        "held-out question, it stands beside. First seed and first sample only; the other seeds are in `predictions/`."
    )
    blocks: list[Block] = [Browser(caption, [*authors], shown)]
    if length is not None:
        text = f"The longer texts are cut after {length} characters here, so that the page stays small; all is in "
        blocks.append(Text(f"{text}`predictions/` and `teachers/`.", is_warning=True))
    return blocks


def _shorten(questions: list[Asked]) -> tuple[list[Asked], int | None]:
    """Returns questions whose texts fit into the page, and the length that the longer ones were cut to."""
    texts = [len(writing.text) for item in questions for writing in item.writings.values()]
    texts += [len(item.question) for item in questions]
    longest = max(texts)
    fitting = [
        n for n in (longest, *_LENGTHS) if sum(min(n, text) for text in texts) <= MAX_CHARACTERS and n <= _LENGTHS[0]
    ]
    length = next(iter(fitting), _LENGTHS[-1])

    def cut(text: str) -> str:
        return shorten(clean(text), length)

    shown = [
        Asked(
            item.id,
            cut(item.question),
            item.gold,
            item.is_held_out,
            {
                author: Writing(writing.author, cut(writing.text), writing.answer and cut(writing.answer),
                                writing.correct, writing.family)
                for author, writing in item.writings.items()
            },
        )
        for item in questions
    ]  # fmt: skip
    return shown, length if length < longest else None
