"""Tests of GGUF metadata: what the package gguf reads of texts, and damage of every kind."""

from pathlib import Path

import pytest

from datamodules.files.gguf_metadata import read_texts

gguf = pytest.importorskip("gguf", reason="pip install 'kindred[gguf]'")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for kind in gguf.GGUFValueType:
        if kind not in (gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY):
            writer.add_key_value(f"a.{kind.name}", 1, kind)
            writer.add_key_value(f"list.{kind.name}", [1, 0, 1], gguf.GGUFValueType.ARRAY, kind)
    writer.add_array("texts", ["", "größer", "x" * 30])
    writer.add_array("lists", [["a", "b"], ["c"]])
    writer.add_string("last", "größer\n")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_texts_are_those_that_the_package_reads(file: Path) -> None:
    assert read_texts(file) == {"general.architecture": "llama", "last": "größer\n"}


def test_each_kind_of_damage_is_refused(file: Path) -> None:
    content = file.read_bytes()
    for end in range(0, len(content) - 1, 3):
        file.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"m\.gguf: no GGUF metadata can be read: "):
            read_texts(file)
    for place in range(0, len(content), 2):
        for value in (9, 255):
            file.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                read_texts(file)
            except ValueError as error:
                assert "no GGUF metadata" in str(error)
