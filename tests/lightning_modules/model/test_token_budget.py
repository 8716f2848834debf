"""Tests of how many tokens fit a memory: against what a step, a reading and a generation really have at a time."""

import weakref
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from datamodules.annotation import QuestionDataModule
from datamodules.batches.packing import CPU_TOKENS, CPU_WRITTEN_TOKENS
from lightning_modules.model import token_budget
from lightning_modules.model.generation import generate_completions, read_prompts, score_endings
from lightning_modules.model.output_head import HeadSettings, run_body
from lightning_modules.model.row_head import RowHead
from lightning_modules.model.static_decoding import StaticDecoder
from lightning_modules.model.token_budget import GRAIN, MOST_TOKENS, ModelMemory, measure_memory
from lightning_modules.student.student import DistillationModule
from lightning_modules.teacher.annotator import Annotator
from losses.distillation import DistillationLoss
from tests.lightning_modules.architectures import ARCHITECTURES, build_tiny
from tests.lightning_modules.conftest import World
from tests.tiny import TRAINER, build, fit

GIB = 2**30
LARGE = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=6, num_attention_heads=14, num_key_value_heads=2,
    vocab_size=16_000, tie_word_embeddings=True,
)  # fmt: skip


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that exist at a time, from a model's own on."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        for parameter in model.parameters():
            self._note(parameter)

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._known:
            return

        def forget(_: Any) -> None:
            del self._known[place]
            self.now -= size

        self._known[place] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return result


@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_token_keeps_is_what_a_real_model_keeps(name: str, is_mixed: bool) -> None:
    model, length = build_tiny(name).train(), 24
    kept: list[int] = []
    for rows in (1, 2):
        storages = {}

        def keep(tensor: torch.Tensor, storages: dict = storages) -> torch.Tensor:
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=is_mixed):
            run_body(model, torch.ones(rows, length, dtype=torch.int64), None)
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        kept.append(sum(storage.nbytes() for place, storage in storages.items() if place not in own))
    found = measure_memory(model.config, "float32", length, is_mixed)
    # Fake attention has a copy more; layers of two kinds, as Gemma 3 has, are counted as the second.
    of_token = found.layers * found.kept_by_layer + found.kept_beside
    assert (kept[1] - kept[0]) / length <= of_token < 1.1 * (kept[1] - kept[0]) / length
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    cache = read_prompts(model.eval(), [[1, 2, 3], [4, 5, 6]]).cache
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert found.cached == cached // 6


def run_step(config: Any, tokens: int, dtype: str, is_mixed: bool, recomputes: bool) -> int:
    """Returns the most bytes of two micro-batches' step and of one more, with AdamW's moments, on fake tensors."""
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).train()
        if recomputes:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        module = DistillationModule("student", DistillationLoss())
        module.model, module._head_settings, module._needs_mask, module._total_steps = model, HeadSettings(), False, 9
        module._trainer = SimpleNamespace(global_step=0)
        optimizer = torch.optim.AdamW(model.parameters())
        rows, supervised = tokens // 512, 2000
        batch = {
            "input_ids": torch.zeros(rows, 512, dtype=torch.int64),
            "rows": torch.arange(supervised),
            "labels": torch.zeros(supervised, dtype=torch.int64),
            "is_answer": torch.zeros(supervised, dtype=torch.bool),
        }
        batch["attention_mask"] = batch["input_ids"]
        with LiveBytes(model) as live:
            for _ in range(2):
                for _ in range(2):
                    with torch.autocast("cpu", enabled=is_mixed):
                        loss = module.compute_loss(batch).total
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return live.peak


@pytest.mark.parametrize(
    ("dtype", "is_mixed", "recomputes"),
    [("float32", True, False), ("bfloat16", False, False), ("float32", False, False), ("float32", True, True)],
)
def test_a_training_of_the_budget_fits_the_memory_and_uses_it(dtype: str, is_mixed: bool, recomputes: bool) -> None:
    memory = (6 if recomputes else 12) * GIB
    found = measure_memory(LARGE, dtype, 512, is_mixed)
    tokens = found.count_training(memory, trains_all=True, recomputes=recomputes)
    assert GRAIN < tokens < MOST_TOKENS
    # The head's logits, for which 2 GiB are left, are fewer on a processor, and its gradients are not there here.
    assert 0.4 * memory < run_step(LARGE, tokens, dtype, is_mixed, recomputes) < 0.9 * memory


def test_a_reading_of_the_budget_fits_the_memory() -> None:
    memory = 4 * GIB
    tokens = measure_memory(LARGE, "bfloat16", 512).count_reading(memory)
    assert GRAIN < tokens < MOST_TOKENS
    with FakeTensorMode(), torch.no_grad():
        model = AutoModelForCausalLM.from_config(LARGE, dtype=torch.bfloat16).eval()
        head = RowHead(model)
        head._settings, head._is_probed, head._needs_mask = HeadSettings(), True, False
        ids = torch.zeros(tokens // 512, 512, dtype=torch.int64)
        with LiveBytes(model) as live:
            for logits in head.run(
                {"input_ids": ids, "rows": torch.arange(tokens), "attention_mask": ids}
            ).iterate_logits():
                logits.log_softmax(-1)
    assert 0.1 * memory < live.peak < 0.9 * memory


@pytest.mark.parametrize(
    ("vocabulary", "is_static", "top_p"), [(4000, False, 1.0), (4000, False, 0.9), (100, False, 1.0), (100, True, 1.0)]
)
def test_a_generation_of_the_budget_fits_the_memory(vocabulary: int, is_static: bool, top_p: float) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4, vocab_size=vocabulary
    )
    memory = 128 * 2**20
    tokens = measure_memory(config, "float32", 64).count_writing(memory)
    assert GRAIN < tokens < MOST_TOKENS
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    # Of fixed shapes one row more than a power of two takes the most.
    rows = 2 ** ((tokens // 64 - 1).bit_length() - 1) + 1 if is_static else tokens // 64
    with LiveBytes(model) as live:
        read = read_prompts(model, [[1 + row // 90, 1 + row % 90, *range(1, 39)] for row in range(rows)])
        score_endings(model, read, [[[5, 6, 7, 8]] * 4] * rows)
        decoder = StaticDecoder(model) if is_static else None
        generate_completions(model, read, [0], 24, 1.0, list(range(rows)), top_p=top_p, decoder=decoder)
    assert 0.15 * memory < live.peak < 0.9 * memory


def test_a_budget_is_within_its_bounds() -> None:
    found = ModelMemory(10**9, 2, 10, 10**5, 10**4, 10**4, 1000, 10_000, False)
    assert found.count_training(GIB, trains_all=True, recomputes=False) == GRAIN
    assert found.count_reading(10**15) == found.count_writing(10**15) == MOST_TOKENS
    counts = {
        "all": found.count_training(24 * GIB, trains_all=True, recomputes=False),
        "an adapter": found.count_training(24 * GIB, trains_all=False, recomputes=False),
        "less": found.count_training(24 * GIB, trains_all=True, recomputes=True),
        "a shard": found.count_training(24 * GIB, trains_all=True, recomputes=False, shards=8),
    }
    assert all(count % GRAIN == 0 and count > counts["all"] for name, count in counts.items() if name != "all")
    of_eight = found.count_reading(GIB * 5, shards=8)
    assert found.count_reading(GIB * 5) < of_eight < found.count_reading(GIB * 7)


def test_a_students_data_is_divided_by_its_gpus_memory(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(token_budget, "find_memory", lambda device: 16 * GIB)
    weights = []
    for given in (None, 100):
        data = world.teach(tokens_per_step=600, tokens_per_batch=given)
        module = DistillationModule(world.student, learning_rate=1e-2)
        fit(module, data, max_steps=3, precision="64-true")
        assert data.token_budget == (given or MOST_TOKENS)
        weights.append(module.model.state_dict())
    said = "65536 tokens are computed at a time, which fit 16 GiB; --data.batches.tokens_per_batch=N says otherwise\n"
    assert capsys.readouterr().out.count(said) == 1
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-9, rtol=1e-9)


def test_a_processors_budget_stays(world: World) -> None:
    data = world.teach(tokens_per_batch=None)
    fit(DistillationModule(world.student), data, max_steps=1)
    assert data.token_budget == CPU_TOKENS
    assert token_budget.find_memory(torch.device("cpu")) is None


def test_an_annotations_budget_has_room_for_what_is_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_budget, "find_memory", lambda device: 16 * 2**20)
    measured: list[tuple] = []

    def measure(*args: Any) -> ModelMemory:
        measured.append(args)
        return measure_memory(*args)

    monkeypatch.setattr(token_budget, "measure_memory", measure)
    data = build(QuestionDataModule, world.teacher, world.questions, prompt="plain", max_length=200)
    data.setup("predict")
    L.Trainer(**TRAINER).predict(Annotator(world.teacher, max_new_tokens=7), data, return_predictions=False)
    assert [args[2] for args in measured] == [207]
    assert GRAIN < data.token_budget < CPU_WRITTEN_TOKENS
