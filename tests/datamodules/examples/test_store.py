"""Tests of the store of tokenized examples: what it holds, what shares it, and what may befall it."""

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.batches.loading import start_forkserver
from datamodules.examples.store import ROWS_PER_BATCH, ExampleStore, ExampleView, drop_too_long, open_store
from datamodules.examples.tokenization import build_examples, load_tokenizer
from datamodules.files.atomic import hash_path
from datamodules.rationales.store import Rationale, write_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question, load_questions
from tests.halting.sitecustomize import halt_at
from tests.tiny import build_tokenizer, make_questions, make_rationale, write_questions

PROMPT = get_prompt("plain")


def write_input(folder: Path, number: int, samples: int = 1) -> list[str]:
    """Returns the arguments of `store_writer`: tokenizer, questions and rationales."""
    build_tokenizer().save_pretrained(folder / "tokenizer")
    questions = make_questions(number)
    write_questions(folder / "colours_train.jsonl", questions)
    rationales = [make_rationale(question, "ada", sample) for question in questions for sample in range(samples)]
    write_rationales(folder / "r.parquet", rationales, {})
    return [str(folder / name) for name in ("tokenizer", "colours_train.jsonl", "r.parquet")]


def open_input(cache_dir: Path, paths: list[str]) -> ExampleStore:
    tokenizer, questions, rationales = paths
    return open_store(cache_dir, load_tokenizer(tokenizer), PROMPT, load_questions(questions), [rationales])


def read_all(store: ExampleStore) -> list[tuple]:
    examples = ExampleView(store, np.arange(len(store)))
    return [(e.id, e.question_id, e.token_ids.tolist(), e.segments.tolist(), e.text_hash) for e in examples]


def test_a_store_holds_what_tokenization_gives_over_several_record_batches(tmp_path: Path) -> None:
    paths = write_input(tmp_path, 60, samples=ROWS_PER_BATCH // 60 + 1)
    store = open_input(tmp_path / "tokenized", paths)
    questions = make_questions(60)
    assert len(store) == 60 * (ROWS_PER_BATCH // 60 + 1) > ROWS_PER_BATCH
    tokenizer = load_tokenizer(paths[0])
    for row in (0, 1, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, len(store) - 1):
        question, sample = divmod(row, ROWS_PER_BATCH // 60 + 1)
        rationale = make_rationale(questions[question], "ada", sample)
        [expected] = build_examples(tokenizer, PROMPT, [(questions[question], rationale)])
        example = store.read(row)
        assert (example.id, example.question_id, example.text_hash) == (
            expected.id, expected.question_id, expected.text_hash
        )  # fmt: skip
        for name in ("token_ids", "segments"):
            array = vars(example)[name]
            assert array.dtype == vars(expected)[name].dtype and array.tolist() == vars(expected)[name].tolist()
            # Views of the map, not copies.
            assert not array.flags.owndata and not array.flags.writeable
        assert store.lengths[row] == len(expected.token_ids)
        assert store.column("num_prompt_tokens")[row] == expected.num_prompt_tokens
    assert set(store.column("teacher")) == {"ada"} and set(store.column("correct")) == {True}


def test_a_store_is_an_arrow_file_of_datasets(tmp_path: Path) -> None:
    from datasets import Dataset

    store = open_input(tmp_path / "tokenized", write_input(tmp_path, 5))
    rows = Dataset.from_file(str(store.folder / "examples.arrow"))
    assert [(row["id"], row["token_ids"]) for row in rows] == [(e[0], e[2]) for e in read_all(store)]


def test_stores_are_shared_by_content_and_nothing_else(tmp_path: Path) -> None:
    paths = write_input(tmp_path, 5)
    cache_dir = tmp_path / "tokenized"
    tokenizer, questions = load_tokenizer(paths[0]), load_questions(paths[1])

    def find(prompt: str = "plain", changed: list[Question] = questions, rationales: str | None = paths[2]) -> str:
        files = [rationales] if rationales else None
        return open_store(cache_dir, tokenizer, get_prompt(prompt), changed, files).folder.name

    first = find()
    before = (cache_dir / first / "examples.arrow").stat()
    moved = tmp_path / "elsewhere.parquet"
    moved.write_bytes(Path(paths[2]).read_bytes())
    assert find() == find(rationales=str(moved)) == first
    after = (cache_dir / first / "examples.arrow").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    edited = [*questions[:-1], Question(**{**vars(questions[-1]), "question": "Which?"})]
    rationale: Rationale = make_rationale(questions[0], "ada")
    write_rationales(tmp_path / "edited.parquet", [Rationale(**{**vars(rationale), "text": "Hm."})], {})
    others = {
        find("cot"),
        find(changed=edited),
        find(rationales=None),
        find(rationales=str(tmp_path / "edited.parquet")),
    }
    assert len({first, *others}) == 5
    build_tokenizer(("iron", "glass")).save_pretrained(tmp_path / "other")
    other = open_store(cache_dir, load_tokenizer(str(tmp_path / "other")), PROMPT, questions, [paths[2]])
    assert other.folder.name not in {first, *others}


def test_worker_processes_map_the_same_file(tmp_path: Path) -> None:
    store = open_input(tmp_path / "tokenized", write_input(tmp_path, 5))
    pickled = pickle.dumps(ExampleView(store, np.array([3, 1])))
    assert len(pickled) < 2000
    assert [example.id for example in pickle.loads(pickled)] == ["q3/ada/0", "q1/ada/0"]


def test_every_flipped_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    store = open_input(tmp_path / "tokenized", write_input(tmp_path, 1))
    expected = read_all(store)
    for name in ("examples.arrow", "manifest.json"):
        path = store.folder / name
        content = path.read_bytes()
        read = 0
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 0x41
            path.write_bytes(bytes(flipped))
            try:
                assert read_all(ExampleStore(store.folder)) == expected
                read += 1
            except ValueError as error:
                assert "are damaged" in str(error) and "delete their folder" in str(error) and "\n" not in str(error)
        # Only the manifest's note of what the store depends on is not covered by the checksum.
        assert read == 0 if name == "examples.arrow" else read < len(content) - 64
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="are damaged"):
            ExampleStore(store.folder)
        path.write_bytes(content)
    (store.folder / "examples.arrow").unlink()
    with pytest.raises(ValueError, match="are damaged"):
        ExampleStore(store.folder)


def test_too_long_examples_are_refused_by_name_or_left_out(tmp_path: Path) -> None:
    store = open_input(tmp_path / "tokenized", write_input(tmp_path, 6))
    examples = ExampleView(store, np.argsort(store.lengths, kind="stable"))
    limit = int(examples.lengths[1])
    assert drop_too_long(examples[:2], limit, skip=False).rows.tolist() == examples.rows[:2].tolist()
    assert drop_too_long(examples, limit, skip=True).rows.tolist() == examples.rows[:2].tolist()
    names = [f"'{example.id}' \\({len(example.token_ids)} tokens\\)" for example in examples[2:5]]
    with pytest.raises(
        ValueError,
        match=rf"^4 of 6 examples are longer than the context of {limit} tokens: {', '.join(names)}, \.\.\.; "
        "set skip_too_long to leave them out$",
    ):
        drop_too_long(examples, limit, skip=False)
    with pytest.raises(ValueError, match=rf"^1 of 3 examples .*: {names[0]}; set skip_too_long"):
        drop_too_long(examples[:3], limit, skip=False)


def open_halting(place: str, *arguments: Any) -> None:
    """Opens a store, but halts at that place, lest it is written before it was looked at."""
    halt_at(place)
    open_store(*arguments)


def test_two_writers_at_once_and_one_that_is_killed(tmp_path: Path) -> None:
    paths = write_input(tmp_path, 60, samples=200)
    expected = read_all(open_input(tmp_path / "alone", paths))
    shared = tmp_path / "shared"
    # Not forked from here, where the tokenizer's threads may run; other tests' loaders share the server.
    context = start_forkserver()
    arguments = (shared, load_tokenizer(paths[0]), PROMPT, load_questions(paths[1]), [paths[2]])
    first, second = [context.Process(target=open_store, args=arguments) for _ in range(2)]
    killed = context.Process(target=open_halting, args=("os.rename:manifest.json:1", *arguments))

    first.start()
    second.start()
    for writer in (first, second):
        writer.join(600)
        assert writer.exitcode == 0
    [folder] = shared.iterdir()
    assert read_all(ExampleStore(folder)) == expected

    folder.rename(tmp_path / "moved")
    killed.start()
    until = time.monotonic() + 600
    while not any(path.stat().st_size for path in shared.glob(".*/examples.arrow")):
        assert killed.is_alive() and time.monotonic() < until
        time.sleep(0.001)
    killed.kill()
    killed.join()
    assert not folder.exists()
    assert read_all(open_input(shared, paths)) == expected
    assert hash_path(folder) == hash_path(tmp_path / "moved")
    assert [*shared.iterdir()] == [folder]
