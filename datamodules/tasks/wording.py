"""What of `configs/languages` questions are asked and read with, as a hash: another wording makes another run.

A language counts where a question is in it, and only with what the run's prompt says and what the extractors look for:
a new language, or another prompt's text, moves nothing.
"""

from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from datamodules.files.atomic import hash_json, hash_source, part_language, read_records
from datamodules.tasks.benchmarks import parse_source
from datamodules.tasks.prompts import PromptLanguage, list_prompts, word_prompt
from datamodules.text.languages import ENGLISH, get_language, resolve_tag

# English as it was when languages began to count, by prompt: left out, so that the runs of before are what they were.
FIRST_ENGLISH: dict[str, str] = {
    "cot": "be47bea2fa4fbcab",
    "few_shot": "780b03265c2ce1e5",
    "direct": "68b4ff4f87262c5c",
    "instruction": "a7c745ee8109d6f4",
    "paraphrase": "65a7af7713035cbd",
    "plain": "dc6d715e4e689e2a",
}


def hash_wording(tag: str, prompt: str, language: PromptLanguage) -> str:
    """Returns the hash of what a language's questions are asked and read with.

    Args:
        tag: Of the questions' language, as its file is called.
        prompt: The prompt's name.
        language: Whether its instructions are in the question's language or in English.
    """
    own = asdict(get_language(tag))
    read = {name: value for name, value in own.items() if name not in ("tag", "name", "prompts", "exemplars")}
    return hash_json([read, word_prompt(prompt, tag, tag if language == "question" else ENGLISH)])


@cache
def _read_tags(file: str, content: str) -> frozenset[str]:
    """Returns the languages of a file's records; `content` is its hash, which the answer is kept by."""
    return frozenset(str(record.get("language") or ENGLISH) for _, record in read_records(Path(file)))


def list_tags(source: str) -> frozenset[str]:
    """Returns the languages of a source's questions; none of a file that is not there."""
    if source.startswith("task:"):
        return frozenset([parse_source(source).language or ENGLISH])
    if source.startswith("microworld:"):
        return frozenset(source.split(":")[4:] or [ENGLISH])
    own, language = part_language(source)
    if language is not None:
        return frozenset([language])
    content = hash_source(own)
    return frozenset() if content is None or Path(own).is_dir() else _read_tags(own, content)


def identify_languages(sources: Iterable[str], prompt: str, language: PromptLanguage) -> dict[str, str]:
    """Returns the hash of each language that questions are in, by its file's name; of English only where it changed.

    A prompt or a language that is not known is left out: who asks or reads says so.

    Args:
        sources: Of the questions.
        prompt: The prompt's name.
        language: Whether its instructions are in a question's language or in English.

    Raises:
        ValueError: A source or a language's file is malformed.
    """
    if prompt not in list_prompts():
        return {}
    found = {ENGLISH: hash_wording(ENGLISH, prompt, "question")}
    for tag in {tag for source in sources for tag in list_tags(source)}:
        try:
            known = resolve_tag(tag)
        except ValueError:
            continue
        found[known] = hash_wording(known, prompt, language)
    return {tag: own for tag, own in sorted(found.items()) if (tag, own) != (ENGLISH, FIRST_ENGLISH.get(prompt))}
