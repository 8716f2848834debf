"""Tests of loading models: fewer layers, names and hashes of weights, context."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers.integrations import accelerate

from datamodules.model_sources import name_model
from lightning_modules.model.generation import generate_completions
from lightning_modules.model.pretrained import check_model, identify_weights, load_causal_lm
from tests.tiny import build_llama, save_model

IDS = torch.arange(10, 40)[None]


@pytest.mark.parametrize("layers", [[0], [0, 3], [1, 2, 3]])
def test_kept_layers_are_a_hand_built_shallow_model(tmp_path: Path, layers: list[int]) -> None:
    folder = save_model(tmp_path / "deep", layers=4)
    shallow = load_causal_lm(folder, keep_layers=layers).eval()
    own = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    built = build_llama(len(own["lm_head.weight"]), layers=len(layers))
    renamed = {}
    for name in built.state_dict():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(layers[int(parts[2])])
        renamed[name] = own[".".join(parts)]
    built.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(shallow(IDS).logits, built(IDS).logits, rtol=0, atol=1e-6)
    # Generation addresses the key-value cache by layer number.
    arguments = (IDS.tolist(), [1], 8)
    assert generate_completions(shallow, *arguments) == generate_completions(built, *arguments)
    # It is saved and loaded as what it now is.
    shallow.save_pretrained(tmp_path / "shallow")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "shallow")
    assert loaded.config.num_hidden_layers == len(layers)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, built(IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [-1], [0, 2]])
def test_layers_that_are_not_there_are_refused(tmp_path: Path, layers: list[int]) -> None:
    folder = save_model(tmp_path / "model")
    with pytest.raises(ValueError, match="keep_layers must be ascending numbers below the model's 2 layers"):
        load_causal_lm(folder, keep_layers=layers)
    with pytest.raises(ValueError, match="keep_layers must be ascending numbers below the model's 2 layers"):
        check_model(folder, None, layers, 64, "length", 7)


def test_a_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    size = AutoModelForCausalLM.from_pretrained(folder).config.vocab_size
    check_model(folder, None, None, 64, "length", size - 1)
    with pytest.raises(ValueError, match=rf"writes token {size}, but its embedding has {size} rows"):
        check_model(folder, None, None, 64, "length", size)


def test_weights_are_identified_by_content(tmp_path: Path) -> None:
    first, same = save_model(tmp_path / "a", seed=1), save_model(tmp_path / "b", seed=1)
    assert identify_weights(first, None) == identify_weights(same, None)
    assert identify_weights(first, None) != identify_weights(save_model(tmp_path / "c", seed=2), None)
    assert [name_model(model) for model in (first, "owner/name", "x/model.gguf")] == ["a", "owner/name", "model"]


def test_context_and_missing_models_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", context=64)
    check_model(folder, None, None, 64, "length", 7)
    with pytest.raises(ValueError, match="length is 65, more than the context of 64 tokens"):
        check_model(folder, None, None, 65, "length", 7)
    with pytest.raises(ValueError, match="no such folder"):
        load_causal_lm(str(tmp_path / "nothing"))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model can be loaded"):
        load_causal_lm(folder)
    with pytest.raises(ValueError, match=r"holds no weights \(\*\.safetensors\)"):
        check_model(folder, None, None, 64, "length", 7)


NAME = "model.layers.1.mlp.up_proj.weight"


def edit_weights(folder: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = Path(folder) / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop(NAME), f"they lack {NAME}$"),
        (
            lambda weights: [weights.pop(name) for name in sorted(weights)[:5]],
            r"they lack lm_head\.weight, .* and 2 more$",
        ),
        (lambda weights: weights.update({"model.more": torch.ones(2)}), r"they have no place for model\.more$"),
        (lambda weights: weights.update({NAME: torch.ones(3, 2)}), rf"they have another shape of {NAME} \(3x2 for \d"),
        (
            lambda weights: weights.update({"a": torch.ones(2), "b": weights.pop(NAME)}),
            f"they lack {NAME}; they have no place for a, b$",
        ),
        (lambda weights: weights[NAME][0].fill_(float("nan")), f"{NAME} holds numbers that are not finite"),
        (lambda weights: weights[NAME][0, 0].fill_(float("inf")), f"{NAME} holds numbers that are not finite"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(tmp_path: Path, edit: Callable, message: str) -> None:
    folder = save_model(tmp_path / "model")
    edit_weights(folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        load_causal_lm(folder)
    assert folder in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    path = Path(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no model can be loaded: "):
        load_causal_lm(folder)


def test_a_tied_head_is_not_missed(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(Path(folder) / "model.safetensors")
    loaded = load_causal_lm(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    edit_weights(folder, lambda weights: weights.pop("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match=r"they lack lm_head\.weight, model\.embed_tokens\.weight"):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop(f"model.{NAME}"), f"they lack {NAME}$"),
        (lambda weights: weights.update({"model.more": torch.ones(2)}), "they have no place for more$"),
        (lambda weights: weights.update({f"model.{NAME}": torch.ones(3, 2)}), f"they have another shape of {NAME}"),
        (lambda weights: weights[f"model.{NAME}"][0].fill_(float("nan")), f"{NAME} holds numbers that are not finite"),
    ],
)
def test_a_checkpoints_weights_are_looked_at_too(tmp_path: Path, edit: Callable, message: str) -> None:
    folder = save_model(tmp_path / "model")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    start = {"model": {"student": folder, "revision": None, "keep_layers": None}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(start))
    weights = {f"model.{name}": weight for name, weight in load_causal_lm(folder).state_dict().items()}
    path = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    torch.save({"state_dict": weights}, path)
    assert torch.equal(load_causal_lm(path).state_dict()[NAME], weights[f"model.{NAME}"])
    edit(weights)
    torch.save({"state_dict": weights}, path)
    with pytest.raises(ValueError, match=message):
        load_causal_lm(path)


def test_a_hub_model_without_revision_is_identified_by_the_commit_in_the_local_hub_cache(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    save_model(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    script = (
        "from lightning_modules.model.pretrained import identify_weights; print(identify_weights('owner/name', None))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == commit


def test_what_transformers_needs_on_a_gpu_is_always_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning lets a model be built under the GPU's device context, where transformers asks for accelerate."""
    monkeypatch.setattr(accelerate, "is_accelerate_available", lambda *_: False)
    with FakeTensorMode(), torch.device("cuda:0"), pytest.raises(ValueError, match=r"requires `?accelerate"):
        accelerate.check_and_set_device_map(None)
    content = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert any(need.startswith("accelerate>=") for need in content["project"]["dependencies"])
