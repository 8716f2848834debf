"""A student whose weights two processes share learns what one process teaches it, and resumes to the bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lightning_modules.model.stored_weights import find_files, find_loading_dtype
from lightning_modules.run.checkpoints import find_checkpoint, read_global_step
from tests.lightning_modules.conftest import World
from tests.lightning_modules.model.sharded_processes import HELD_OUT, LORA, SPLITS, STEPS, train
from tests.tiny import save_model

ROOT = Path(__file__).parents[3]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# What importing an architecture and running it on a few tokens takes.
LIBRARIES = 110 << 20


@pytest.fixture(scope="module")
def paths(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The world as the other processes read it, with two more students."""
    folder = tmp_path_factory.mktemp("students")
    return {
        **{name: str(value) for name, value in vars(world).items()},
        "tied": save_model(folder / "tied", seed=3, padding=5, tie_word_embeddings=True),
        "forgetful": save_model(folder / "forgetful", seed=4, attention_dropout=0.3),
    }


@pytest.fixture(scope="module")
def output(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "job.json").write_text(json.dumps({"world": paths, "output": str(folder)}))
    script = Path(__file__).with_name("sharded_processes.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder / "job.json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("student", ["student", "tied"])
def test_weights_are_those_of_one_process(paths: dict[str, str], output: Path, student: str, split: str) -> None:
    """In float64, since AdamW's first steps turn rounding noise of a small gradient into a whole step."""
    module, _, _ = train({**paths, "student": paths[student]}, "float64", {})
    exported = AutoModelForCausalLM.from_pretrained(output / f"{student}-{split}", dtype="auto")
    assert exported.dtype == torch.float64 and type(exported) is type(module.model)
    assert exported.config.use_cache and exported.config.tie_word_embeddings == (student == "tied")
    expected = module.model.state_dict()
    assert exported.state_dict().keys() == expected.keys()
    for name, tensor in exported.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_adapter_is_that_of_one_process(paths: dict[str, str], output: Path, kind: str) -> None:
    """Exported merged; activations are computed twice."""
    module, _, _ = train(paths, "float32", {}, student=LORA)
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(output / f"lora-{kind}")(ids).logits
        torch.testing.assert_close(logits, module.model.eval()(ids).logits, rtol=0, atol=1e-4)
        assert (logits - AutoModelForCausalLM.from_pretrained(paths["student"])(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_every_step_logs_what_one_process_logs(paths: dict[str, str], output: Path, kind: str, split: str) -> None:
    """The first step's numbers within float32's rounding; later ones after AdamW has amplified it."""
    two = [json.loads((output / f"{kind}-{split}-{rank}.json").read_text()) for rank in range(2)]
    assert two[0] == two[1] and len(two[0]) == STEPS
    _, _, one = train(paths, "float32", {})
    for step, (left, right) in enumerate(zip(two[0], one, strict=True)):
        assert left == pytest.approx(right, rel=1e-6 if step == 0 else 1e-3, abs=1e-6), step


def test_validation_metrics_are_those_of_one_process(paths: dict[str, str], output: Path) -> None:
    two = [json.loads((output / f"val-{rank}.json").read_text()) for rank in range(2)]
    names = [name for name in two[0] if name.startswith("val/")]
    assert len(names) == 1 + 2 * 8
    assert [two[0][name] for name in names] == [two[1][name] for name in names]
    _, trainer, _ = train(paths, "float32", HELD_OUT, learning_rate=0.0)
    for name in names:
        assert two[0][name] == pytest.approx(trainer.callback_metrics[name].item(), rel=1e-5), name


def test_resumed_from_its_checkpoint_it_is_to_the_bit_what_it_was(output: Path) -> None:
    whole, resumed = (load_file(output / name / "model.safetensors") for name in ("uninterrupted", "resumed"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_is_whole_with_all_its_files(output: Path, tmp_path: Path) -> None:
    first, last = tmp_path / "previous.ckpt", tmp_path / "last.ckpt"
    shutil.copytree(output / "checkpoints" / "1.ckpt", first)
    shutil.copytree(output / "checkpoints" / "2.ckpt", last)
    assert find_checkpoint(tmp_path) == last and read_global_step(last) == 2
    torn = last / "1-of-2.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    # Each process reads its own part only.
    assert find_checkpoint(tmp_path, rank=0) == last
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged; going on from previous.ckpt"):
        assert find_checkpoint(tmp_path, rank=1) == first
    assert not last.exists()
    # That all parts are there is anybody's to see.
    (first / "1-of-2.pt").unlink()
    with pytest.raises(ValueError, match=r"previous.ckpt: damaged; delete the run's folder"):
        find_checkpoint(tmp_path)


def load_in_processes(folder: Path, processes: int, *part: str) -> tuple[int, int, list[dict]]:
    """Returns the bytes of a float32 copy and of its largest block, and what each process took while it loaded one."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8000, **sizes)).bfloat16()
    model.save_pretrained(folder / "student")
    script = str(Path(__file__).with_name("memory_processes.py"))
    command = [sys.executable, script, str(folder / "student"), str(folder), str(processes), *part]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=900)
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    assert all(own["dtypes"] == ["torch.float32"] for own in found)
    return 4 * model.num_parameters(), 4 * model.model.embed_tokens.weight.numel(), found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_no_process_holds_a_float32_copy_while_it_loads(tmp_path: Path, processes: int) -> None:
    """Beside its shards, which a GPU holds itself: a block and the libraries, not a copy for each process."""
    whole, block, found = load_in_processes(tmp_path, processes)
    for own in found:
        assert own["peak"] < whole / processes + 2 * block + LIBRARIES, f"a whole copy is {whole}"
        assert own["peak"] - own["left"] < 1.2 * 2 * block


@pytest.mark.slow
def test_processes_take_turns_to_change_a_start_which_is_that_of_one_process(tmp_path: Path) -> None:
    """One of four holds a copy and the weights that are drawn at a time, and each of those before it its shards."""
    whole, _, found = load_in_processes(tmp_path, 4, "body")
    assert all(own["alike"] for own in found)
    held = [0] * 4
    peak = 0
    for _, rank, size in sorted((when, rank, size) for rank, own in enumerate(found) for when, size in own["held"]):
        held[rank] = size
        peak = max(peak, sum(held))
    assert 2 * whole < peak < 3 * whole + 4 * LIBRARIES, f"a whole copy is {whole}"


def test_weights_are_loaded_as_stored_only_where_that_loses_nothing(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **SMALL))
    model.bfloat16().save_pretrained(tmp_path / "half")
    model.float().save_pretrained(tmp_path / "single", max_shard_size="2KB")
    model.lm_head.half().weight.data.add_(1)
    model.save_pretrained(tmp_path / "mixed")
    assert len(find_files(str(tmp_path / "single"), None)) > 1
    found = [find_loading_dtype(str(tmp_path / name), None, "float32") for name in ("half", "single", "mixed")]
    assert found == ["bfloat16", "float32", "float32"]
    assert find_loading_dtype(str(tmp_path / "single"), None, "bfloat16") == "bfloat16"
    assert find_loading_dtype(str(tmp_path / "half"), None, "float16") == "float16"
    assert find_loading_dtype("model.gguf", None, "float32") == "float32"
