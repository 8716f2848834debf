"""LoRA (Hu et al. 2021, arXiv 2106.09685) and QLoRA (Dettmers et al. 2023, arXiv 2305.14314) through peft."""

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from datamodules.files.parsing import read_json_object
from datamodules.model_cards import find_card
from datamodules.model_sources import loading, resolve_model


@dataclass(frozen=True)
class Adapter:
    """Low-rank matrices that are trained in place of the weights; defaults as in Ranaldi & Freitas (EACL 2024).

    Attributes:
        r: Rank.
        alpha: The product of the matrices is multiplied by alpha / r.
        dropout: On the matrices' input.
        target_modules: Names of the linear layers; null takes the model card's, else all but the output head.
        quantize: Hold the frozen weights in 4 bits (NF4); needs bitsandbytes, and is meant for a GPU.
    """

    r: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: ClosedUnitInterval = 0.1
    target_modules: list[str] | None = None
    quantize: bool = False


def check_peft() -> None:
    """Raises a ValueError if peft is not installed."""
    if find_spec("peft") is None:
        raise ValueError("an adapter needs peft; install it with: pip install 'kindred[peft]'")


def check_adapter(adapter: Adapter, student: str) -> None:
    """Raises a ValueError if what the adapter needs is not there."""
    check_peft()
    if not adapter.quantize:
        return
    if find_spec("bitsandbytes") is None:
        raise ValueError("model.adapter.quantize needs bitsandbytes; install it with: pip install 'kindred[qlora]'")
    if student.endswith(".gguf"):
        raise ValueError(f"model.adapter.quantize: {student} is unpacked into plain weights; start from safetensors")


def add_adapter(model: PreTrainedModel, adapter: Adapter, student: str, revision: str | None) -> str:
    """Freezes the model, puts the adapter's matrices into it, in float32, and returns what was done in one line.

    The initial values depend on the process's seed alone, so that all processes draw the same.

    Raises:
        ValueError: The model has no layer of a wanted name, or none of so high a rank.
    """
    from peft import LoraConfig  # an optional extra

    card = find_card(student)
    targets = adapter.target_modules or (card.lora_targets if card else None)
    ranks = dict[str, int]()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and (targets or module is not model.get_output_embeddings()):
            name = path.rpartition(".")[2]
            ranks[name] = max(ranks.get(name, 0), min(module.in_features, module.out_features))
    if unknown := sorted(set(targets or []) - ranks.keys()):
        raise ValueError(f"model.adapter.target_modules: no linear layer of {student} is named {', '.join(unknown)}")
    if adapter.r > (highest := max((rank for name, rank in ranks.items() if name in (targets or ranks)), default=0)):
        raise ValueError(f"model.adapter.r={adapter.r}: the layers of {student} have ranks up to {highest}; lower it")
    untie_head(model, targets or [])
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed())
        model.add_adapter(config)
    config.base_model_name_or_path, config.revision = resolve_model(student, revision)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    share = sum(map(torch.Tensor.numel, trained)) / model.num_parameters()
    on = ", ".join(targets) if targets else "all linear layers but the output head"
    return f"LoRA r={adapter.r} alpha={adapter.alpha:g} on {on}: {share:.2%} of the parameters are trained"


def untie_head(model: PreTrainedModel, targets: Collection[str]) -> None:
    """Gives the output head weights of its own if it is one of the adapter's layers and shares the embedding's.

    What is added to the head would else change the embedding, too, once it is merged: another model than was trained.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "")
    if name.rpartition(".")[2] in targets and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def find_base(folder: str) -> tuple[str, str | None] | None:
    """Returns the model and the revision that an exported adapter belongs to; None if the folder is no adapter's.

    Raises:
        ValueError: Its config names no such model, or one that leads back to the folder.
    """
    base = _read_base(folder)
    seen, under = {Path(folder).resolve()}, base
    while under is not None:
        if (place := Path(under[0]).resolve()) in seen:
            raise ValueError(
                f"{folder}/adapter_config.json: its base model {under[0]} leads back to itself; correct it"
            )
        seen.add(place)
        under = _read_base(under[0])
    return base


def _read_base(folder: str) -> tuple[str, str | None] | None:
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    config = read_json_object(path)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not isinstance(revision, str | None):
        raise ValueError(f"{path}: base_model_name_or_path must be the model's name, and revision a text or null")
    return base, revision


def merge_adapter(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Returns the model with an exported adapter added to its weights.

    Raises:
        ValueError: The folder's weights are not those of its config.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict  # an optional extra

    with loading(folder, "adapter"):
        config = PeftConfig.from_pretrained(folder)
    untie_head(model, config.target_modules if isinstance(config.target_modules, set) else [])
    with loading(folder, "adapter"):
        adapted = PeftModel.from_pretrained(model, folder)
    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    wanted = get_peft_model_state_dict(adapted).keys()
    if stored != wanted:
        raise ValueError(
            f"{folder}: its weights are not those of its config: {', '.join(sorted(stored ^ wanted)[:3])} "
            "is there in one of them only"
        )
    return adapted.merge_and_unload()
