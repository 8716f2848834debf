"""Which language a text is in, by py3langid: naive Bayes over bytes (Lui & Baldwin 2012), its model in the package."""

import re
from collections.abc import Iterable, Sequence

from datamodules.text.languages import list_languages

# What BCP 47 calls otherwise than the identifier.
_NAMES = {"nb": "no"}
_LETTER = re.compile(r"[^\W\d_]")


def _name(tag: str) -> str:
    language = tag.partition("-")[0]
    return _NAMES.get(language, language)


class LanguageIdentifier:
    """Tells the languages of `configs/languages` and some others apart.

    Fewer languages are told apart better: of 140, Indonesian is often Malay, and Chinese Wu.

    Args:
        tags: BCP 47, of the other languages that texts may be in.
    """

    def __init__(self, tags: Iterable[str] = ()):
        try:
            from py3langid.langid import MODEL_FILE
            from py3langid.langid import LanguageIdentifier as Identifier
        except ImportError:
            raise ValueError(
                "language_fidelity needs py3langid; install it with: pip install 'kindred[languages]'"
            ) from None
        self._identifier = Identifier.from_model_file(MODEL_FILE)
        known = set(self._identifier.labels)
        if unknown := sorted(tag for tag in tags if _name(tag) not in known):
            raise ValueError(f"language_fidelity: py3langid does not know {', '.join(unknown)}; leave it false")
        self._identifier.set_languages(sorted({_name(tag) for tag in [*list_languages(), *tags]} & known))

    def tell(self, text: str) -> str | None:
        """Returns the tag of a text's language, without script and place; None for a text without letters."""
        return str(self._identifier.classify(text)[0]) if _LETTER.search(text) else None

    def is_in(self, texts: Sequence[str], tags: Sequence[str]) -> list[bool | None]:
        """Returns whether each text is in its language; None for a text without letters."""
        found = [self.tell(text) for text in texts]
        return [None if own is None else own == _name(tag) for own, tag in zip(found, tags, strict=True)]
