"""Which part of a completion replies to its question: after the thinking, before whatever the model invents next.

A base model that is not stopped goes on after its answer: with a next question, with the other speaker's turn, with
another task of its training data. What it answers there is no answer to what it was asked.
"""

import re

from datamodules.answers.localization import localize
from datamodules.answers.statements import find_last_statement
from datamodules.tasks.questions import Question
from datamodules.text.sentences import SENTENCE_END, squash
from datamodules.text.thinking import split_thinking

# Marks of a turn's beginning or end, as text.
_TURN = re.compile(
    r"<\|(?:user|human|prompter|system|assistant|observation|im_start|im_end|end|eot_id|eom_id|endoftext|end_of_text"
    r"|eos|begin_of_text|start_header_id|end_of_turn|eot|header_start|im_user|im_assistant|start_of_role|end_of_role|return|endofprompt"
    r"|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN)\|"
    r"|<[|\uff5c](?:User|Assistant|end\u2581of\u2581sentence)|<(?:start|end)_of_turn>|<(?:eos|bos|EOS_TOKEN|BOS_TOKEN|seed:eos|seed:bos)>|\[\|(?:endofturn|user|assistant)\|\]|\[/?INST\]|<</?SYS>>|</?s>(?!\w)"
)
_DECORATION = re.compile(r"[ \t]*(?:[#>*_~-]+[ \t]*)*")
_NUMBERED = r"(?:[ \t]*(?:#|[Nn]o\.? ?)?\d{1,4})?[*_]{0,3}[ \t]*"
# A label that begins another question or turn.
_LABEL = re.compile(
    r"(?:[Qq]|[Qq]uestion|QUESTION|[Hh]uman|HUMAN|[Uu]ser|USER|[Ii]nstructions?|[Ii]nput|INPUT)"
    rf"{_NUMBERED}(?::|\uff1a)"
    r"|Q\.[ \t]"
    rf"|(?:Question|Instructions?|Input|User|Human){_NUMBERED}(?=\n)"
    r"|Choose the answer to the question only from options"
    r"|Answer the question(?: with a number|, and put the final answer)"
)
# What also begins a step of a solution, and another task only after an answer.
_TASK = re.compile(
    r"(?:(?:Answer )?(?:[Cc]hoices|[Oo]ptions)|Problem|Exercise|Example|Task|Prompt|Query|Passage|Context|Premise"
    r"|Hypothesis|Sentence|Paragraph|Article|Review|Tweet|Title|Text|Story|Scenario|Student|System|Puzzle|Quiz)"
    rf"{_NUMBERED}(?::|(?=\n))"
    r"|(?:Problem|Exercise|Example|Question|Task)[ \t]*#?\d{1,4}\b"
    r"|(?:(?:Now|OK|Okay|Next),? )?"
    r"(?:[Ll]et['\u2019]s (?:try|solve|consider|look at|do|move on to|answer) |[Hh]ere(?:['\u2019]s| is) )?"
    r"(?:[Aa]nother|[Tt]he [Nn]ext|[Aa] (?:[Nn]ew|[Dd]ifferent|[Ss]imilar)|[Nn]ext|[Nn]ew)"
    r" (?:question|problem|example|task|exercise)"
    r"|(?:Translate|Write|Summari[sz]e|Rewrite|Classify|Generate|Create|Complete|Choose|Select|Read|Given)"
    r" (?:the|a|an|each|this|these)\b"
)
# The second of a list that the text did not begin.
_NEXT_TASK = re.compile(
    r"(?P<kind>Problem|Exercise|Example|Task)[ \t]*#?(?P<number>\d{1,4})[*_]{0,3}[ \t]*(?::|(?=\n))"
)
# An invented question without any label: a line that asks, then what answers it or its options.
_ASKING = re.compile(
    r"\n\s*(?!Wait|But|Hmm|So\b|Why|Really|Or\b|However|(?:Is|Does) (?:that|this|it)\b|Right)"
    r"[^\n]*\?[*_\"']*[ \t]*\n\s*"
    r"(?=[(*_#]*A[*_]*[).:]|[*_#]*(?:Answer|Choices|Options|Solution)\b|Let['\u2019]s\b|####)"
    # Of a numbered list of questions.
    r"|\n\s*[*_]*\d{1,3}[.)][*_]*[ \t][^\n]*\?[*_\"']*[ \t]*\n\s*(?=\S)"
)
# The same on one line.
_ASKING_INLINE = re.compile(r"(?<=\?)[ \t]+(?:A|(?:Answer )?[Cc]hoices|Options|Answer|Solution):")
_FINAL_LINE = re.compile(r"####[ \t]*[-\u2212$\d.,/]+[ \t]*(?=\n)")
# Where a label may stand: at the start of a line, or of a sentence.
_START = re.compile(r"\n\s*|(?<=[.!?\"'\u201d)\]])[ \t]+(?=[QHUI][:uns]|Choose the|Answer the|Instruction)")


def find_reply(text: str, question: Question, answered: bool = False) -> tuple[int, int]:
    """Returns where the reply begins and ends; empty, at the text's end, where the thinking was never closed.

    Args:
        text: The completion.
        question: What was asked.
        answered: A turn's mark ends only a reply that has stated an answer; before that it is text like any other.
    """
    start = split_thinking(text).start if "<" in text or "[THINK" in text or "\u25c1" in text else 0
    return start, start + len(text[start : _find_end(text, start, question, answered)].rstrip())


def cut_run_on(text: str, question: Question) -> str:
    """Returns a completion without what the model invented after its reply; the thinking stays."""
    local = localize(text, question)
    if local is None:
        return text[: find_reply(text, question, answered=True)[1]].rstrip()
    end = find_reply(local.folded.text, local.question, answered=True)[1]
    return text[: local.restore_place(end)].rstrip()


def _find_end(text: str, start: int, question: Question, answered: bool) -> int:
    """Returns where the first turn or task begins that is not this question's."""
    end = len(text)
    states_answer: dict[int, bool] = {}

    def is_answered(place: int) -> bool:
        if place not in states_answer:
            states_answer[place] = find_last_statement(text[start:place], question) is not None
        return states_answer[place]

    if "<" in text or "[" in text:
        for turn in _TURN.finditer(text, start):
            if text[start : turn.start()].strip() and (not answered or is_answered(turn.start())):
                end = turn.start()
                break
    for opening in _START.finditer(text, start, end):
        heading = _DECORATION.match(text, opening.end(), end)
        assert heading is not None
        place = heading.end()
        if not text[start : opening.start()].strip(" \n\t#*_>-"):
            continue
        if label := _LABEL.match(text, place, end):
            if is_answered(opening.start()) or not _restates(text[label.end() : end], question):
                return opening.start()
        elif opening.group().startswith("\n") and _TASK.match(text, place, end):
            if is_answered(opening.start()) or _is_next(text, start, place):
                return opening.start()
    if "?" in text[start:end]:
        places = [asking.start() for asking in _ASKING.finditer(text, start, end)]
        for asking in _ASKING_INLINE.finditer(text, start, end):
            # From the beginning of the sentence that asks.
            *_, sentence = [start, *(match.end() for match in SENTENCE_END.finditer(text, start, asking.start()))]
            places.append(sentence)
        for place in sorted(places):
            if is_answered(place):
                return place
        if (final := _FINAL_LINE.search(text, start, end)) and re.search(r"\?[\s\S]*####", text[final.end() : end]):
            return final.end()
    return end


def _is_next(text: str, start: int, place: int) -> bool:
    """Whether "Problem 2:" is at a place, and no "Problem 1" before it."""
    task = _NEXT_TASK.match(text, place)
    if task is None or int(task["number"]) < 2:
        return False
    return re.search(rf"\b{task['kind']}[ \t]*#?\d", text[start:place], re.IGNORECASE) is None


def _restates(text: str, question: Question) -> bool:
    """Whether a text begins with the question that was asked, in nearly its words."""
    own = squash(question.question).split()
    said = squash(text[: 2 * len(question.question) + 100]).split()
    if len(own) < 4:
        return said[: len(own)] == own and squash(text.strip().split("\n")[0]).split() == own
    begin = set(said[: len(own) + len(own) // 2 + 4])
    return len(begin & set(own)) >= 0.7 * len(set(own))
