"""Tests of seals: no flipped byte of an artefact is read as something else."""

import json
import random
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datamodules.files.atomic import write_sealed
from datamodules.files.seals import (
    DONE,
    MANIFEST,
    check_folder,
    check_run_file,
    check_table,
    describe_files,
    hash_run_files,
    read_sealed,
    seal_record,
)
from datamodules.files.tables import read_table, write_table
from datamodules.rationales.store import load_rationales, read_metadata, write_rationales
from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.run.folder import read_metrics
from scripts.seal import main
from tests.tiny import make_questions, make_rationale, save_model

FLIPS = [25, pytest.param(200, marks=pytest.mark.slow)]


def count_silent(path: Path, read: Callable[[], Any], number: int) -> int:
    """Returns how many of so many flipped bytes of a file are read, without a word, as something else."""
    content, expected, draw, silent = path.read_bytes(), repr(read()), random.Random(7), 0
    for _ in range(number):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            silent += repr(read()) != expected
        except Exception as error:
            # What a reader makes of damage elsewhere is its own; here it is one line that names the file.
            assert isinstance(error, ValueError) and str(path) in str(error) and "\n" not in str(error), error
    path.write_bytes(content)
    return silent


@pytest.mark.parametrize("number", FLIPS)
def test_no_flip_in_a_rationale_store_is_silent(tmp_path: Path, number: int) -> None:
    questions = {question.id: question for question in make_questions(20)}
    path = tmp_path / "r.parquet"
    write_rationales(path, [make_rationale(question, "t") for question in questions.values()], {"teacher": "t"})
    assert count_silent(path, lambda: (load_rationales([str(path)], questions), read_metadata(path)), number) == 0


@pytest.mark.parametrize("number", FLIPS)
def test_no_flip_in_predictions_is_silent(tmp_path: Path, number: int) -> None:
    path = tmp_path / "p.parquet"
    write_table(path, [{"question_id": f"q{n}", "correct": n % 3 == 0, "scores": [n / 7, -1.0]} for n in range(50)], {})
    assert count_silent(path, lambda: read_table(path, ["correct", "scores"]).to_pylist(), number) == 0


@pytest.mark.parametrize("number", FLIPS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", MANIFEST])
def test_no_flip_in_an_exported_student_is_silent(tmp_path: Path, name: str, number: int) -> None:
    folder = Path(save_model(tmp_path / "student"))
    write_sealed(folder / MANIFEST, {"files": describe_files(folder)})
    check_folder(folder)
    load_causal_lm(str(folder))
    content, draw = (folder / name).read_bytes(), random.Random(7)
    for _ in range(number):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=str(folder)):
            load_causal_lm(str(folder))


@pytest.mark.parametrize("number", FLIPS)
@pytest.mark.parametrize("name", ["metrics.jsonl", DONE])
def test_no_flip_in_a_finished_runs_files_is_silent(tmp_path: Path, name: str, number: int) -> None:
    lines = [{"step": step, "train/loss": 1 / (step + 1)} for step in range(30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_sealed(tmp_path / DONE, {"global_step": 30, "train_examples": 17, "sha256": hash_run_files(tmp_path)})
    assert read_metrics(tmp_path) == lines
    read = (lambda: read_metrics(tmp_path)) if name == "metrics.jsonl" else (lambda: read_sealed(tmp_path / DONE))
    assert count_silent(tmp_path / name, read, number) == 0


def test_a_student_that_was_swapped_or_lost_a_file_is_refused(tmp_path: Path) -> None:
    folder = Path(save_model(tmp_path / "student"))
    write_sealed(folder / MANIFEST, {"files": describe_files(folder)})
    write_sealed(tmp_path / DONE, {"sha256": hash_run_files(tmp_path)})
    check_folder(folder)
    (folder / "notes.txt").write_text("files may be added")
    check_folder(folder)
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"student/config\.json: is missing"):
        check_folder(folder)
    (tmp_path / "config.json").rename(folder / "config.json")
    (folder / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"student/kindred\.json: is missing, though the run is done"):
        check_folder(folder)


def test_what_has_no_seal_is_read_and_a_table_of_ours_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, [{"a": 1}], {"made": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_table(path) and read_table(path).to_pylist() == [{"a": 1}]
    # Other tools write what they read without the seal.
    pq.write_table(pq.read_table(path), path)
    with pytest.warns(UserWarning, match="t.parquet: is not sealed"):
        assert read_table(path).to_pylist() == [{"a": 1}]
    assert read_metadata(path) == {"made": 1}
    (tmp_path / DONE).touch()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    check_run_file(tmp_path, "metrics.jsonl")
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_sealed_table_is_one_for_other_readers(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    records = [{"a": number, "b": [number / 3], "c": {"d": "é"}} for number in range(1000)]
    write_table(path, records, {})
    assert pq.read_table(path).to_pylist() == records
    assert pq.ParquetFile(path).metadata.num_rows == 1000


def test_a_damaged_seal_is_found_where_its_key_is_damaged(tmp_path: Path) -> None:
    record = seal_record({"a": 1})
    record["sael"] = record.pop("seal")
    (tmp_path / "x.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"x\.json: it is not what was written"):
        read_sealed(tmp_path / "x.json")


def test_what_was_edited_on_purpose_is_sealed_again_and_says_so(tmp_path: Path, capsys) -> None:
    questions = {question.id: question for question in make_questions(3)}
    rationales = [make_rationale(question, "t") for question in questions.values()]
    store, folder = tmp_path / "r.parquet", Path(save_model(tmp_path / "student"))
    write_rationales(store, rationales, {"teacher": "t"})
    write_sealed(folder / MANIFEST, {"files": describe_files(folder)})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    write_sealed(tmp_path / DONE, {"global_step": 2, "sha256": hash_run_files(tmp_path)})
    write_sealed(tmp_path / "results.json", {"cells": []})

    edited = [asdict(replace(rationale, text="Better.")) for rationale in rationales]
    table = pq.read_table(store)
    pq.write_table(table.from_pylist(edited, schema=table.schema), store)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "use_cache": False}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    (tmp_path / "results.json").write_text((tmp_path / "results.json").read_text().replace("[]", "[1]"))
    reads = [
        lambda: check_folder(folder),
        lambda: read_metrics(tmp_path),
        lambda: read_sealed(tmp_path / "results.json"),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"seal it with: python -m scripts\.seal "):
            read()
    main([str(path) for path in (store, folder, tmp_path, tmp_path / "results.json")])
    assert capsys.readouterr().out.count("sealed as it is") == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [rationale.text for rationale in load_rationales([str(store)], questions)] == ["Better."] * 3
    for read in reads:
        read()
    assert not load_causal_lm(str(folder)).config.use_cache
    records = [read_metadata(store), read_sealed(folder / MANIFEST), read_sealed(tmp_path / DONE)]
    for record in (*records, read_sealed(tmp_path / "results.json")):
        assert set(record["sealed_again"][0]) == {"created", "git_commit"}
    assert records[0]["teacher"] == "t" and records[2]["global_step"] == 2


@pytest.mark.parametrize("name", ["none.parquet", "notes.txt", "folder"])
def test_what_cannot_be_sealed_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=name):
        main([str(tmp_path / name)])
