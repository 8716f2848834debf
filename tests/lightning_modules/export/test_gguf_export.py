"""Tests of a student's export: what its folder says, and that a refusal leaves nothing behind."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules.files.parsing import read_json_object
from datamodules.files.seals import hash_file

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from datamodules.tasks.prompts import get_prompt
from lightning_modules.export.card import CARD, CARD_KEY, read_card
from lightning_modules.export.gguf_export import Calibration, export_gguf, is_exported, refuse_quantized
from tests.lightning_modules.export.conftest import MODELS, QUESTIONS, Exported, save_rationales


def test_the_card_says_what_the_files_are(exported: Exported) -> None:
    import gguf

    card = read_json_object(exported.folder / CARD)
    assert {path.name for path in exported.folder.iterdir()} == {CARD, *card["files"]}
    assert (card["student"], card["teachers"], card["tied_head"]) == ("a-student", ["a-teacher"], True)
    assert card["data"][0]["licence"] == "Apache-2.0" and card["calibration"]["examples"] == 20
    sizes = [own["bytes"] for own in card["files"].values()]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 3
    for name, own in card["files"].items():
        file = exported.folder / name
        assert own["sha256"] == hash_file(file) and own["bytes"] == file.stat().st_size and own["texts_equal"] == 500
        inside = json.loads(str(gguf.GGUFReader(file).fields[CARD_KEY].contents()))
        assert inside["kl"] == own["kl"] and inside["teachers"] == card["teachers"]
        assert str(file) in exported.said
    exact = card["files"]["a-student-f16.gguf"]
    assert exact["greedy_equal"] == exact["prompts"] == 24 and exact["kl"] < 1e-4 and exact["top1_agreement"] == 1
    assert card["files"]["a-student-Q8_0.gguf"]["kl"] < 0.005


def test_an_export_whose_files_are_not_what_was_written_is_not_complete(exported: Exported, tmp_path: Path) -> None:
    folder = shutil.copytree(exported.folder, tmp_path / "out")
    calibration = Calibration(QUESTIONS, [exported.rationales], get_prompt("plain"), max_new_tokens=24)
    given = folder, str(MODELS / "a-student"), ["f16", "Q8_0", "Q4_K_M"], calibration, None
    assert is_exported(*given)
    assert not is_exported(*given[:3], replace(calibration, longest=511), None)
    file = folder / "a-student-Q8_0.gguf"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"Q8_0\.gguf: is missing or damaged; remove .*out, and the same command"):
        is_exported(*given)
    file.unlink()
    with pytest.raises(ValueError, match=r"Q8_0\.gguf: is missing or damaged"):
        is_exported(*given)


def test_a_file_has_room_for_a_long_card(exported: Exported, tmp_path: Path) -> None:
    results = {f"a task {n}": {"value": n / 1000, "n": 1000} for n in range(1000)}
    calibration = Calibration(QUESTIONS, [exported.rationales], get_prompt("plain"), max_new_tokens=4)
    export_gguf(str(MODELS / "a-student"), ["f32"], calibration, tmp_path / "out", results=results)
    card = read_card(tmp_path / "out" / "a-student-f32.gguf")
    assert card["student_results"] == results and card["kl"] < 1e-4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ({"dtype": "float16"}, "weights are float16"),
        # Of files that hold float16.
        ({"dtype": "bfloat16"}, "weights are float16"),
        ({"dtype": None}, "weights are float16"),
    ],
)
def test_weights_that_are_rounded_already_are_refused(tmp_path: Path, config: dict, message: str) -> None:
    folder = shutil.copytree(MODELS / "a-student", tmp_path / "s")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    with pytest.raises(ValueError, match=message):
        refuse_quantized(str(folder))
    with pytest.raises(ValueError, match="is a GGUF file"):
        refuse_quantized("x.gguf")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.save({"state_dict": {"model.a": torch.zeros(2, dtype=dtype)}}, tmp_path / f"{dtype}.ckpt")
    refuse_quantized(str(tmp_path / "torch.float32.ckpt"))
    refuse_quantized(str(tmp_path / "torch.bfloat16.ckpt"))
    with pytest.raises(ValueError, match=r"float16\.ckpt: its weights are float16"):
        refuse_quantized(str(tmp_path / "torch.float16.ckpt"))


def test_a_refused_export_leaves_nothing(exported: Exported, tmp_path: Path, full_disk) -> None:
    student, output = str(MODELS / "a-student"), tmp_path / "out"
    test = save_rationales(tmp_path / "test.parquet", "microworld:test:8:0")
    held_out = Calibration("microworld:test:8:0", [test], get_prompt("plain"))
    with pytest.raises(ValueError, match="a question of the split 'test'"):
        export_gguf(student, ["f16"], held_out, output)
    calibration = Calibration(QUESTIONS, [exported.rationales], get_prompt("plain"), max_new_tokens=4)
    with full_disk(100_000), pytest.raises(ValueError, match="cannot be written"):
        export_gguf(student, ["f16"], calibration, output)
    short = shutil.copytree(student, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 30}))
    with pytest.raises(ValueError, match=r"\(--calibration_length\) is \d+, more than the context of 30 tokens of"):
        export_gguf(str(short), ["f16"], calibration, output)
    with pytest.raises(ValueError, match=r"has no convert_hf_to_gguf\.py"):
        export_gguf(student, ["f16"], calibration, output, llama_cpp=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"short", "test.parquet"}
    # As where another process has made the folder since the command line was checked.
    (output / "theirs").mkdir(parents=True)
    with pytest.raises(ValueError, match="out: is there already"):
        export_gguf(student, ["f16"], calibration, output)
    assert {path.name for path in tmp_path.iterdir()} == {"short", "test.parquet", "out"}
