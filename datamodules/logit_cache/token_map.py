"""What a teacher's tokens are in a student's vocabulary, by the bytes of both; once for a pair of tokenizers."""

import bisect
from functools import cached_property

import numpy as np

from datamodules.text.token_bytes import FALLBACK, VocabularyBytes


class TokenMap:
    """Maps between the vocabularies of a teacher and a student.

    Tokens of the same vocabulary stand for themselves. Of several tokens of another with the same bytes that which its
    tokenizer emits stands for all: none to fall back to, as SentencePiece's `<0x61>` beside `a`, and of the others that
    of the highest id, which was added. A special token that does not end a turn is the student's of the same name.

    Args:
        teacher: The teacher's vocabulary.
        student: The student's vocabulary.
        student_end: The id with which the student ends a turn; it stands for all of the teacher's ends.

    Attributes:
        longest: The length of the student's longest token, in bytes.
        starts: Where each of the teacher's tokens begins among the bytes of all, int64 [V].
    """

    def __init__(self, teacher: VocabularyBytes, student: VocabularyBytes, student_end: int):
        self.teacher, self.student, self.student_end = teacher, student, student_end
        # What comes later in the order replaces what came before.
        order = np.argsort(student.flags & FALLBACK == 0, kind="stable").tolist()
        self._ids = {student.tokens[number]: number for number in order if student.tokens[number]}
        self.longest = max(map(len, self._ids))
        self.starts = np.cumsum(teacher.lengths) - teacher.lengths

    @cached_property
    def equal_tokens(self) -> np.ndarray:
        """For each teacher id the student's of the same bytes, int32 [V]; -1 for none."""
        return self._with_controls(np.array([self._ids.get(token, -1) for token in self.teacher.tokens], np.int32))

    @cached_property
    def prefix_tokens(self) -> np.ndarray:
        """For each teacher id the student's longest token that its bytes begin with, int32 [V]; -1 for none."""
        has_bytes = self.teacher.lengths > 0
        found = np.full(len(self.teacher), -1, np.int32)
        found[has_bytes] = self.suffix_prefixes[self.starts[has_bytes]]
        return self._with_controls(found)

    @cached_property
    def suffix_prefixes(self) -> np.ndarray:
        """For each byte of the teacher's vocabulary the student's longest token that begins there, int32; -1 for none.

        The token must end within the teacher's: entry `starts[t] + r` is for what is left of t after r bytes.
        """
        found = []
        for token in self.teacher.tokens:
            for start in range(len(token)):
                for stop in range(min(len(token), start + self.longest), start, -1):
                    if (number := self._ids.get(token[start:stop])) is not None:
                        break
                found.append(-1 if number is None else number)
        return np.array(found, np.int32)

    def _with_controls(self, found_V: np.ndarray) -> np.ndarray:
        if self.teacher.hash == self.student.hash:
            return np.arange(len(found_V), dtype=np.int32)
        for name, number in self.teacher.controls.items():
            found_V[number] = self.student.controls.get(name, -1)
        found_V[self.teacher.ends] = self.student_end
        return found_V

    @cached_property
    def _sorted_teacher(self) -> tuple[list[bytes], np.ndarray]:
        order = sorted(range(len(self.teacher)), key=self.teacher.tokens.__getitem__)
        ranks = np.empty(len(order), np.int32)
        ranks[order] = np.arange(len(order))
        return [self.teacher.tokens[number] for number in order], ranks

    @property
    def ranks(self) -> np.ndarray:
        """The place of each teacher id among the tokens in the order of their bytes, int32 [V]."""
        return self._sorted_teacher[1]

    def find_range(self, prefix: bytes) -> tuple[int, int]:
        """Returns the first rank of the teacher's tokens that begin with these bytes, and that after the last.

        Special tokens have no bytes: they rank first, before every prefix that has.
        """
        tokens, _ = self._sorted_teacher
        # No token has a byte above 255 in its place: what follows all that begin with the prefix.
        after = prefix.rstrip(b"\xff")
        low = bisect.bisect_left(tokens, prefix)
        high = bisect.bisect_left(tokens, after[:-1] + bytes([after[-1] + 1])) if after else len(tokens)
        return low, high

    @cached_property
    def _sorted_student(self) -> tuple[list[bytes], dict[bytes, bytes]]:
        """The student's tokens in the order of bytes, and the longest other that each begins with."""
        tokens = sorted(self._ids)
        parents = {}
        for token in tokens:
            for stop in range(len(token) - 1, 0, -1):
                if token[:stop] in self._ids:
                    parents[token] = token[:stop]
                    break
        return tokens, parents

    def find_prefixes(self, text: bytes, longer_than: int) -> list[tuple[int, int]]:
        """Returns (id, length) of the tokens of the student that a text begins with, shortest first.

        Args:
            text: Long enough for any token.
            longer_than: Only those of more bytes.
        """
        tokens, parents = self._sorted_student
        place = bisect.bisect_right(tokens, text)
        # The last token that is not after the text begins with all those that the text begins with.
        token = tokens[place - 1] if place else None
        found = []
        while token is not None and len(token) > longer_than:
            if text.startswith(token):
                found.append((self._ids[token], len(token)))
            token = parents.get(token)
        return found[::-1]

    @cached_property
    def is_space(self) -> np.ndarray:
        """Whether each of the student's ids is nothing but white space, bool [V]."""
        return np.array([bool(token) and token.isspace() for token in self.student.tokens])
