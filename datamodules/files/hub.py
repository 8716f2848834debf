"""Whether the Hugging Face hub can be reached; without it, its cache is read, and what is not there is named.

The hub's own library asks again and again for a minute before it gives up; one question with a bound is asked first.
"""

import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

# Seconds for an answer, with all that comes before it.
TIMEOUT = 3.0


@cache
def is_reachable() -> bool:
    """Says whether the hub answers, once a process; never with HF_HUB_OFFLINE=1."""
    if constants.HF_HUB_OFFLINE:
        return False
    ended, answers = threading.Event(), list[object]()

    def ask() -> None:
        # Whatever the library's own HTTP client raises: of requests or of httpx, by its version.
        with suppress(Exception):
            answers.append(huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT))
        ended.set()

    # The client's timeouts begin after the name is resolved, and nothing but another thread can bound that.
    threading.Thread(target=ask, daemon=True).start()
    return ended.wait(TIMEOUT) and bool(answers)


def is_cached(name: str, revision: str | None) -> bool:
    """Says whether the hub's cache holds a file of a model or its tokenizer."""
    files = ("config.json", "tokenizer_config.json", "tokenizer.json")
    found = (huggingface_hub.try_to_load_from_cache(name, file, revision=revision) for file in files)
    return any(isinstance(path, str) for path in found)


def is_data_set_cached(name: str) -> bool:
    """Says whether a cache, of the hub's files or of the tables made of them, holds anything of a data set."""
    tables = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME, "datasets")))
    files = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
    return files.is_dir() or Path(tables, name.replace("/", "___")).is_dir()


def could_not_ask(error: BaseException | None) -> bool:
    """Says whether an error comes from what a cache lacks while the hub is away, though another may have answered."""
    seen = list[BaseException]()
    while error is not None and error not in seen:
        if isinstance(error, LocalEntryNotFoundError):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def describe_missing(name: str, kind: Literal["model", "dataset"], local: str, revision: str | None = None) -> str:
    """Returns what to say of something that is neither here nor can be fetched.

    Args:
        name: Hub id.
        kind: Of its repository.
        local: How a local copy is named.
        revision: Its commit, tag or branch, if one is asked for.
    """
    command = ["hf", "download", name]
    command += ["--repo-type", "dataset"] if kind == "dataset" else []
    command += ["--revision", revision] if revision is not None else []
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return (
        f"{kind} {name} is not in the hub's cache, and {why}; name a local copy ({local}), or fetch it where there is "
        f"a network: {shlex.join(command)} (huggingface-cli download in older versions)"
    )


@contextmanager
def reading_cache_only() -> Iterator[None]:
    """Lets `datasets` read what it has cached, without asking a hub that does not answer."""
    import datasets

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = not is_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
