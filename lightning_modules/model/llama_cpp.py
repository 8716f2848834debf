"""Models in GGUF files, run by llama.cpp: token ids, logits, what a model writes, and how likely it finds endings.

The library is the one inside the package xllamacpp, whose own interface is a chat server: its C functions are called
here. They take structures by value, so that the version is pinned, and what is read of them is checked.
"""

import ctypes
import json
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_bool, c_char, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import find_end_tokens
from lightning_modules.model.generation import choose_tokens

PACKAGE = "xllamacpp"
TESTED = "2026.10.11549"
ROWS = 512
# LLAMA_TOKEN_ATTR_UNKNOWN and _CONTROL.
_NO_TEXT = 1 | 8


class _ContextParams(ctypes.Structure):
    """The head of llama_context_params; the rest keeps the library's defaults."""

    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch")),
        ("rest", c_char * 220),
    ]


class _ModelParams(ctypes.Structure):
    _fields_ = [("all", c_char * 256)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [c_void_p, c_void_p]),
    "llama_model_default_params": (_ModelParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_get_attr": (c_int32, [c_void_p, c_int32]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, c_int32]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_context_default_params": (_ContextParams, []),
    "llama_init_from_model": (c_void_p, [c_void_p, _ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "ggml_quantize_chunk": (c_size_t, [c_int32, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
}
_log = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)(lambda level, text, data: None)


def is_installed() -> bool:
    """Says whether the package is there."""
    return find_spec(PACKAGE) is not None


def name_runtime() -> str:
    """Returns what predictions record: the library with its version.

    Raises:
        ValueError: It is not installed.
    """
    if not is_installed():
        raise ValueError(
            f"model.runtime=llama_cpp needs {PACKAGE}; install it with: pip install 'kindred[gguf-export]'"
        )
    return f"llama.cpp ({PACKAGE} {version(PACKAGE)})"


@cache
def load_library() -> ctypes.CDLL:
    """Loads llama.cpp, silent, and declares its functions.

    Raises:
        ValueError: It is not installed, or another version than is known here.
    """
    name_runtime()
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    [file] = Path(spec.origin).parent.glob(f"{PACKAGE}*.so")
    library = ctypes.CDLL(str(file))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = result, arguments
    library.llama_log_set(ctypes.cast(_log, c_void_p), None)
    defaults = library.llama_context_default_params()
    if (defaults.n_batch, defaults.n_ubatch, defaults.n_seq_max, defaults.n_threads) != (2048, 512, 1, 4):
        raise ValueError(f"{PACKAGE} {version(PACKAGE)} is not known here; install {PACKAGE}=={TESTED}")
    return library


class LlamaCpp:
    """A GGUF model in memory, with the key-value cache of one sequence.

    Attributes:
        path: The file.
        context: Most tokens that it can read, as the file says.
        room: Most tokens that it has memory for.
        num_tokens: Of its vocabulary.
    """

    def __init__(self, path: str, longest: int | None = None, threads: int | None = None):
        """Loads the file.

        Args:
            path: The file.
            longest: Most tokens that will be read; None takes the model's whole context.
            threads: To compute with; None takes torch's number.

        Raises:
            ValueError: llama.cpp is not there, or cannot load the file.
        """
        self.path, library = path, load_library()
        self._model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        if not self._model:
            raise ValueError(f"{path}: llama.cpp cannot load it: it is damaged, or of an architecture it does not know")
        self._vocab = library.llama_model_get_vocab(self._model)
        self.num_tokens = int(library.llama_vocab_n_tokens(self._vocab))
        self.context = int(library.llama_model_n_ctx_train(self._model))
        params = library.llama_context_default_params()
        params.n_ctx = self.room = min(longest or self.context, self.context)
        params.n_batch = params.n_ubatch = ROWS
        params.n_threads = params.n_threads_batch = threads or torch.get_num_threads()
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"{path}: llama.cpp cannot make room for {params.n_ctx} tokens; lower what is read")
        self._memory = library.llama_get_memory(self._context)
        self._batch = library.llama_batch_init(ROWS, 0, 1)
        self._held: list[int] = []

    def close(self) -> None:
        """Frees the memory; nothing can be read afterwards."""
        library = load_library()
        library.llama_batch_free(self._batch)
        library.llama_free(self._context)
        library.llama_model_free(self._model)

    @property
    def chat_template(self) -> str | None:
        """The file's chat template."""
        text = load_library().llama_model_chat_template(self._model, None)
        return None if text is None else str(text.decode())

    @property
    def bos_id(self) -> int | None:
        """The token that llama.cpp puts before a text; None if it puts none."""
        library = load_library()
        return int(library.llama_vocab_bos(self._vocab)) if library.llama_vocab_get_add_bos(self._vocab) else None

    @property
    def end_id(self) -> int:
        """The token that ends a text, as the file says; -1 if it says none."""
        return int(load_library().llama_vocab_eos(self._vocab))

    def ends(self, token: int) -> bool:
        """Says whether llama.cpp's programs stop at this token."""
        return bool(load_library().llama_vocab_is_eog(self._vocab, token))

    def list_controls(self) -> set[str]:
        """Returns the names of control tokens, and of the one for what there is no token for, which are no text."""
        library, tokens = load_library(), range(self.num_tokens)
        marked = [token for token in tokens if library.llama_vocab_get_attr(self._vocab, token) & _NO_TEXT]
        return {library.llama_vocab_get_text(self._vocab, token).decode() for token in marked}

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Returns a text's ids.

        Args:
            text: The text.
            add_special: Also those that the file puts around a text.
            parse_special: The names of control tokens stand for them.
        """
        content = text.encode()
        room = len(content) + 8
        ids = (c_int32 * room)()
        number = load_library().llama_tokenize(
            self._vocab, content, len(content), ids, room, add_special, parse_special
        )
        assert number >= 0
        return list(ids[:number])

    def forget(self) -> None:
        """Empties the cache, so that what comes next does not depend, in its last bit, on what was read before."""
        load_library().llama_memory_clear(self._memory, True)
        self._held = []

    def read(self, ids: Sequence[int], last: int = 1) -> np.ndarray:
        """Returns the logits after each of a text's last tokens, float32 [last, vocabulary].

        What it begins with alike with what was read before is not read again.

        Args:
            ids: The whole text from its beginning; one token at least.
            last: How many.
        """
        library = load_library()
        shared = next(
            (n for n, pair in enumerate(zip(ids, self._held, strict=False)) if pair[0] != pair[1]),
            min(len(ids), len(self._held)),
        )
        shared = min(shared, len(ids) - last)
        if shared < len(self._held) and not library.llama_memory_seq_rm(self._memory, 0, shared, -1):
            self.forget()
            shared = 0
        logits = np.empty((last, self.num_tokens), np.float32)
        batch = self._batch
        for start in range(shared, len(ids), ROWS):
            stop = min(start + ROWS, len(ids))
            batch.n_tokens = stop - start
            for row, place in enumerate(range(start, stop)):
                batch.token[row], batch.pos[row], batch.n_seq_id[row] = ids[place], place, 1
                batch.seq_id[row][0] = 0
                batch.logits[row] = place >= len(ids) - last
            if library.llama_decode(self._context, batch) != 0:
                raise ValueError(f"{self.path}: llama.cpp cannot read {len(ids)} tokens; its context is too short")
            for row, place in enumerate(range(start, stop)):
                if (number := place - (len(ids) - last)) >= 0:
                    pointer = library.llama_get_logits_ith(self._context, row)
                    logits[number] = np.ctypeslib.as_array(pointer, (self.num_tokens,))
        self._held = [*ids]
        return logits

    def generate(
        self,
        prompt: Sequence[int],
        end_ids: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        has_stopped: Callable[[list[int]], bool] | None = None,
    ) -> tuple[list[int], Literal["stop", "length"]]:
        """Continues one prompt, as `generate_completions` does it.

        Args:
            prompt: Token ids.
            end_ids: End a completion, beside those at which llama.cpp stops by itself.
            max_new_tokens: Truncates it.
            temperature: 0 is greedy.
            seed: Of the draws; needed if not greedy.
            has_stopped: Whether a completion ends with these ids, end tokens apart.
        """
        draws = None
        if temperature > 0:
            assert seed is not None
            draws = np.random.default_rng(seed).random(max_new_tokens)
        ids: list[int] = []
        for step in range(max_new_tokens):
            logits_BV = torch.from_numpy(self.read([*prompt, *ids]))
            uniform_B = None if draws is None else torch.tensor([draws[step]])
            token = int(choose_tokens(logits_BV, temperature, uniform_B))
            if token in end_ids or self.ends(token):
                return ids, "stop"
            ids.append(token)
            if has_stopped is not None and has_stopped(ids):
                return ids, "stop"
        return ids, "length"

    def score_endings(self, prompt: Sequence[int], endings: Sequence[Sequence[int]]) -> list[float]:
        """Returns log p(ending | prompt), in nats, of each ending of one token at least."""
        scores = []
        for ending in endings:
            logits_LV = torch.from_numpy(self.read([*prompt, *ending[:-1]], len(ending)))
            labels_L1 = torch.tensor([[token] for token in ending])
            scores.append(float(logits_LV.log_softmax(-1).gather(-1, labels_L1).double().sum()))
        return scores

    def check(self, tokenizer: PreTrainedTokenizerBase, longest: int, what: str, highest_id: int) -> None:
        """Refuses these token ids where it cannot run on them.

        Args:
            tokenizer: What makes the ids.
            longest: Longest sequence.
            what: The settings that add up to it, for the message.
            highest_id: Of the tokens that it is given.

        Raises:
            ValueError: Its context is too short, it has too few tokens, or it ends texts elsewhere.
        """
        if longest > self.context:
            raise ValueError(
                f"{what} is {longest}, more than the context of {self.context} tokens of {self.path}; lower it"
            )
        if highest_id >= self.num_tokens:
            raise ValueError(
                f"{self.path}: has {self.num_tokens} tokens, but is given token {highest_id}: of another model"
            )
        if not self.ends(end := find_end_tokens(tokenizer)[0]):
            raise ValueError(
                f"{self.path}: llama.cpp does not stop at token {end} "
                f"({json.dumps(tokenizer.convert_ids_to_tokens(end))}), which ends a text of its tokenizer's, but at "
                f"{self.end_id}; export the student again"
            )


def check_gguf(path: str, tokenizer: PreTrainedTokenizerBase, longest: int, what: str, highest_id: int) -> None:
    """Refuses a GGUF file that llama.cpp cannot load, or cannot run on these token ids, as `LlamaCpp.check` does."""
    model = LlamaCpp(path, longest=ROWS)
    try:
        model.check(tokenizer, longest, what, highest_id)
    finally:
        model.close()
