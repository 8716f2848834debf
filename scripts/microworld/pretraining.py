"""Pre-trains one model of a microworld family from nothing: a plain loop that goes on where a kill stopped it."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.files.atomic import atomic_path, hash_json, hash_text, write_json
from datamodules.provenance import find_git_commit
from datamodules.tasks.microworld import KINDS, Role, pretraining_pairs
from scripts.microworld.families import SPACE, Parts, Size, build_model, grow
from scripts.microworld.measuring import Row, encode, evaluate, lookups, padded

RECORD = "pretraining.json"  # what made a model, in its folder


@dataclass(frozen=True)
class Stage:
    """A stretch of training: at most `steps` batches, and less if all lookups are right before that.

    `until` is the share of lookups, of the worst kind, at which the stage ends; nothing is looked at where it is null.
    """

    steps: int
    chains: int = 4
    documents: float = 0.5
    mixed: float = 1.0
    until: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How one model is pre-trained: the learning rate warms up, stays, and falls to zero in the last stage.

    A model whose accuracy on held-out questions is below `at_least` or above `at_most` is not kept.
    """

    size: Size
    stages: list[Stage] = field(default_factory=list)
    lr: float = 3e-3
    warmup: int = 200
    batch: int = 32
    weight_decay: float = 0.01
    hint_weight: float = 1.0
    at_least: float = 0.0
    at_most: float = 1.0


class Hint(torch.nn.Module):
    """A throw-away head: after the first layer, every position has to name the world's word that came before it.

    Looking something up takes two steps: know which word a word follows, then find the place where the same word was
    followed. Asking for the first step outright makes the second one appear within minutes instead of hours.
    """

    classes: torch.Tensor

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int) -> None:
        super().__init__()
        words = [SPACE + word for kind in KINDS for word in kind]
        self.register_buffer("classes", torch.full((len(tokenizer),), -100))
        self.classes[tokenizer.convert_tokens_to_ids(words)] = torch.arange(len(words))
        self.head = torch.nn.Linear(width, len(words))

    def forward(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the previous word of the world, where there is one."""
        classes = self.classes[ids]
        positions = torch.where(classes >= 0, torch.arange(ids.shape[1]), -1)
        last = positions.cummax(dim=1).values
        before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
        kept = before >= 0
        labels = classes.gather(1, before.clamp(min=0))[kept]
        return torch.nn.functional.cross_entropy(self.head(hidden[kept]), labels)


def train_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Row],
    hint: Hint | None,
    weight: float,
) -> float:
    """One optimiser step on a batch: cross-entropy of the completions, and the hint. Returns the former."""
    ids, labels = padded(rows)
    out = model.base_model(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=hint is not None)
    targets = labels[:, 1:]
    kept = targets != -100
    logits = model.get_output_embeddings()(out.last_hidden_state[kept])
    loss = torch.nn.functional.cross_entropy(logits, targets[kept])
    total = loss if hint is None else loss + weight * hint(ids[:, :-1], out.hidden_states[1])
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return loss.item()


class Training:
    """A model in pre-training, with all that the next step depends on.

    Args:
        model: The model at its start.
        tokenizer: Its tokenizer.
        recipe: How it is pre-trained.
        identity: Names what is made; a state of something else is refused.
        state: The file that it is kept in between steps.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, identity: str, state: Path
    ) -> None:
        self.model, self.tokenizer, self.recipe, self.identity, self.state = model, tokenizer, recipe, identity, state
        self.hint = Hint(tokenizer, recipe.size.width)
        self.optimizer = torch.optim.AdamW(
            [*model.parameters(), *self.hint.parameters()],
            lr=recipe.lr,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
        )
        self.stage = self.at = self.done = 0  # the stage, the steps done in it, and the steps done in all
        if state.exists():
            self._read()

    def _weights(self) -> dict[str, torch.Tensor]:
        named = {"model": self.model, "hint": self.hint}
        return {f"{own}.{name}": p for own, module in named.items() for name, p in module.named_parameters()}

    def write(self) -> None:
        """Writes the state, atomically."""
        moments = {
            f"optimizer.{number}.{key}": value
            for number, held in self.optimizer.state_dict()["state"].items()
            for key, value in held.items()
        }
        places = {"identity": self.identity, "stage": self.stage, "at": self.at, "done": self.done}
        with atomic_path(self.state) as temporary:
            save_file(
                {name: p.detach() for name, p in self._weights().items()} | moments,
                temporary,
                {name: str(value) for name, value in places.items()},
            )

    @torch.no_grad()
    def _read(self) -> None:
        with safe_open(self.state, "pt") as file:
            places = file.metadata()
            if places["identity"] != self.identity:
                raise ValueError(f"{self.state}: is the state of another recipe; remove it, or choose another --state")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for name, parameter in self._weights().items():
            parameter.copy_(tensors[name])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name in tensors:
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = tensors[name]
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.stage, self.at, self.done = (int(places[name]) for name in ("stage", "at", "done"))

    def set_rate(self) -> None:
        """Sets the next step's learning rate."""
        recipe, is_last = self.recipe, self.stage == len(self.recipe.stages) - 1
        fall = 0.5 * (1 + math.cos(math.pi * self.at / recipe.stages[self.stage].steps)) if is_last else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (self.done + 1) / recipe.warmup) * fall

    def run_stage(self, parts: Parts, role: Role, every: int) -> None:
        """Runs what is left of the current stage, and writes the state after each `every` steps and at its end."""
        stage, recipe, name = self.recipe.stages[self.stage], self.recipe, f"{parts.name}-{role}"
        pairs = pretraining_pairs(parts.phrasing, role, self.stage, stage.chains, stage.documents, stage.mixed)
        # What has been drawn before: cheaper than keeping the generator's state.
        next(islice(pairs, self.at * recipe.batch, self.at * recipe.batch), None)
        bar = tqdm(
            total=stage.steps, initial=self.at, desc=f"{name}, stage {self.stage + 1}", mininterval=10, disable=None
        )
        with bar:
            while self.at < stage.steps:
                self.set_rate()
                self.model.train()
                rows = encode(self.tokenizer, list(islice(pairs, recipe.batch)))
                loss = train_step(self.model, self.optimizer, rows, self.hint, recipe.hint_weight)
                self.at, self.done = self.at + 1, self.done + 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if self.at % 100 == 0:
                    self.model.eval()
                    found = lookups(self.model, self.tokenizer, parts.phrasing)
                    shares = [round(share, 2) for share in found]
                    tqdm.write(f"{name}, stage {self.stage + 1}, step {self.done}: loss {loss:.3f}, lookups {shares}")
                    if stage.until is not None and min(found) >= stage.until:
                        break
                if self.at % every == 0:
                    self.write()
        self.stage, self.at = self.stage + 1, 0
        self.write()


def pretrain(
    tokenizer: PreTrainedTokenizerBase,
    parts: Parts,
    role: Role,
    recipe: Recipe,
    state: Path,
    start: PreTrainedModel | None = None,
    every: int = 100,
) -> PreTrainedModel:
    """Pre-trains one model by its recipe, from nothing or grown from a shallower model.

    Killed at any moment, the same call goes on from `state`, to the same weights to the bit.

    Args:
        tokenizer: The family's.
        parts: The family's.
        role: Which text it is shown.
        recipe: Its size and training.
        state: The file that keeps what has been done; the caller removes it.
        start: The shallower model.
        every: After how many steps the state is written.

    Raises:
        ValueError: The state is another recipe's.
    """
    model = build_model(parts.architecture, recipe.size, tokenizer, parts.seed)
    if start is not None:
        grow(model, start)
    start_hash = None if start is None else [hash_text(p.detach().numpy().tobytes()) for p in start.parameters()]
    identity = hash_json([asdict(parts), role, asdict(recipe), start_hash])
    training = Training(model, tokenizer, recipe, identity, state)
    while training.stage < len(recipe.stages):
        training.run_stage(parts, role, every)
    return model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a plain Hugging Face folder: weights in float16, configured to load as float32."""
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def finish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    made_by: dict[str, Any],
    recipe: Recipe,
    held_out: int,
) -> None:
    """Measures a model as it is saved, and writes its folder with what made it and what it can do, atomically.

    Raises:
        ValueError: Its accuracy is not within the recipe's bounds; nothing is written.
    """
    with atomic_path(folder) as temporary:
        save(model, tokenizer, temporary)
        found, _ = evaluate(temporary, held_out)
        if not recipe.at_least <= found <= recipe.at_most:
            raise ValueError(
                f"{folder}: is not written, since its accuracy is {found:.3f} on {held_out} held-out questions, not "
                f"{recipe.at_least} to {recipe.at_most}; change the recipe's stages or the seed"
            )
        record = {"made_by": made_by, "accuracy": found, "held_out": held_out}
        versions = {name: version(name) for name in ("torch", "transformers", "sentencepiece")}
        write_json(temporary / RECORD, {**record, "git_commit": find_git_commit(), "versions": versions})
