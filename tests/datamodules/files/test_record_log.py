"""Tests of the log that survives a kill; the kills themselves are in the tests of what uses it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.files.record_log import RecordLog, refuse_other_records


@pytest.mark.parametrize("name", ["r.parquet", "r[0-9]*.parquet"])
def test_what_was_appended_is_found_by_any_rank_and_merged_once(tmp_path: Path, name: str) -> None:
    merged: list[dict] = []
    output = tmp_path / "new" / name
    logs = [RecordLog(output, {"a": 1}, merged.extend) for _ in range(2)]
    for rank, log in enumerate(logs):
        log.open(rank)
        log.append([{"rank": rank, "text": "é\u2028"}])
        log.append([{"rank": rank, "text": "2"}])
    found = RecordLog(output, {"a": 1}, merged.extend).collect()
    assert [record["rank"] for record in found] == [0, 0, 1, 1]
    logs[1].merge()
    assert merged == found and list(output.parent.iterdir()) == []


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_line_is_no_record_and_is_cut_off(tmp_path: Path, cut: int) -> None:
    log = RecordLog(tmp_path / "r", {}, lambda records: None)
    log.open()
    log.append([{"n": 1}])
    log.append([{"n": 2, "text": "a longer line, with é, that a kill tears"}])
    whole = log.part.read_bytes()
    log.part.write_bytes(whole[:-cut])
    again = RecordLog(tmp_path / "r", {}, lambda records: None)
    assert again.collect() == [{"n": 1}]
    again.open()
    again.append([{"n": 3}])
    assert again.collect() == [{"n": 1}, {"n": 3}]
    lines = [json.loads(line) for line in again.part.read_text().split("\n")[1:-1]]
    assert [{"n": line["n"]} for line in lines] == again.collect()


def test_no_flipped_byte_is_read_as_another_record(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "r", {}, lambda records: None)
    log.open()
    log.append([{"question_id": f"q{n}", "text": "It is é.", "score": n / 7, "ids": [n, None]} for n in range(9)])
    whole, written = log.part.read_bytes(), log.collect()
    for place in range(len(whole)):
        log.part.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            # A last line without its end is one that a kill tore.
            assert log.collect() == (written if place < len(whole) - 1 else written[:-1])
        except ValueError as error:
            assert ".r.part-0.jsonl" in str(error)


def test_a_full_disk_names_the_part_and_loses_no_record_before(tmp_path: Path, full_disk: Callable) -> None:
    log = RecordLog(tmp_path / "r", {}, lambda records: None)
    log.open()
    log.append([{"n": 1}])
    message = r"\.r\.part-0\.jsonl: cannot be written: File too large; the same command continues once that is mended$"
    with full_disk(100), pytest.raises(ValueError, match=message):
        log.append([{"n": 2, "text": "x" * 200}])
    again = RecordLog(tmp_path / "r", {}, lambda records: None)
    again.open()
    again.append([{"n": 3}])
    assert again.collect() == [{"n": 1}, {"n": 3}]


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "r", {"a": 1}, lambda records: None)
    log.open()
    log.append([{}])
    with pytest.raises(ValueError, match="begun with another configuration"):
        RecordLog(tmp_path / "r", {"a": 2}, lambda records: None).collect()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("aabc", "1 of 3 records are there twice, such as 'a'"),
        ("a", "2 of 3 records are missing, such as 'b'"),
        ("abcd", "1 of 3 records were not asked for, such as 'd'"),
    ],
)
def test_what_is_merged_is_each_item_once(found: str, message: str) -> None:
    refuse_other_records(Path("r.parquet"), "cab", "abc")
    with pytest.raises(ValueError, match=rf"^r\.parquet: not written, since {message}; delete \.r\.parquet\.part-"):
        refuse_other_records(Path("r.parquet"), found, "abc")
    if found == "a":
        refuse_other_records(Path("r.parquet"), found, "abc", are_all_there=False)
