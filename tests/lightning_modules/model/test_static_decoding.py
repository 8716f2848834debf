"""Tests that a cache of fixed shapes writes what a growing one writes, and that few compilations serve all shapes."""

import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM, FalconMambaConfig, PreTrainedModel

from lightning_modules.model.generation import Sample, generate_completions, read_prompts, score_endings
from lightning_modules.model.static_decoding import (
    COMPILED_FROM,
    StaticDecoder,
    choose_decoder,
    find_obstacle,
    round_length,
    round_rows,
)
from tests.lightning_modules.architectures import ARCHITECTURES, SIZES, build_tiny

# Of unequal lengths, one of them there twice, longer and shorter than the windows of 4.
PROMPTS = [[5, 9, 30], [7] * 11, list(range(20, 41)), [45], [5, 9, 30]]
NEW_TOKENS = 24


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_tiny(request.param).eval().requires_grad_(False)


@pytest.fixture
def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return build_tiny("llama-3").eval().requires_grad_(False)


@pytest.fixture
def compilations() -> Iterator[CompileCounter]:
    """Compiles nothing, and counts the graphs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield CompileCounter()
    torch._dynamo.reset()


def test_shapes_are_few_and_hold_what_there_is() -> None:
    for round_up, lowest in ((round_rows, 2), (round_length, 64)):
        found = [round_up(number) for number in range(1, 5000)]
        assert all(shape >= number for number, shape in enumerate(found, 1)) and found[0] == lowest
        assert found == sorted(found)
    assert {round_rows(number) for number in range(1, 129)} == {2, 4, 8, 16, 32, 64, 128}
    assert {round_length(number) for number in range(1, 1025)} == {64, 96, 128, 192, 256, 384, 512, 768, 1024}


def test_texts_are_those_of_a_growing_cache(model: PreTrainedModel) -> None:
    """Whichever rows end early, however many: one decoder continues batch after batch in the same memory."""
    decoder = StaticDecoder(model)
    free = generate_completions(model, PROMPTS, [], NEW_TOKENS)
    assert generate_completions(model, PROMPTS, [], NEW_TOKENS, decoder=decoder) == free
    for end in sorted({ids[place] for ids, _ in free for place in (1, 5, 12)})[::3]:
        wanted = generate_completions(model, PROMPTS, [end], NEW_TOKENS)
        assert generate_completions(model, PROMPTS, [end], NEW_TOKENS, decoder=decoder) == wanted
    # All that begin alike, of which a window or none sees the beginning.
    exemplars = [[*range(10, 40), *prompt] for prompt in PROMPTS]
    wanted = generate_completions(model, exemplars, [2], NEW_TOKENS)
    assert generate_completions(model, exemplars, [2], NEW_TOKENS, decoder=decoder) == wanted


def test_samples_are_those_of_a_growing_cache(model: PreTrainedModel) -> None:
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seeds": list(range(15))}
    found: list[list[Sample]] = []
    completions = []
    for decoder in (None, StaticDecoder(model)):
        read, samples = read_prompts(model, PROMPTS), list[Sample]()
        options = score_endings(model, read, [[[4, 8], [15, 16, 23]]] * len(PROMPTS))
        has_stopped = lambda ids: len(ids) > 3 and ids[-1] % 7 == 0  # noqa: E731
        more = {**settings, "has_stopped": has_stopped, "samples": samples, "decoder": decoder}
        completions.append((options, generate_completions(model, read.repeat(3), [2], NEW_TOKENS, **more)))
        found.append(samples)
    assert completions[0] == completions[1] and len({len(ids) for ids, _ in completions[0][1]}) > 3
    assert [sample.ids for sample in found[0]] == [sample.ids for sample in found[1]]
    for one, other in zip(*found, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.mark.parametrize("name", {type(config): name for name, config in ARCHITECTURES.items()}.values())
def test_one_compilation_without_a_break_serves_all_shapes(name: str, compilations: CompileCounter) -> None:
    torch.manual_seed(0)
    model = build_tiny(name).eval().requires_grad_(False)
    decoder = StaticDecoder(model, compilations)
    shapes = set()
    run = decoder._run

    def spy(tokens_B1: torch.Tensor, mask_BL: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.add(tuple(mask_BL.shape))
        return run(tokens_B1, mask_BL, *rest)

    decoder._run = spy
    for prompts, most in ((PROMPTS, 24), (PROMPTS[:2], 70), (PROMPTS[3:4], 3), (PROMPTS * 2, 24)):
        wanted = generate_completions(model, prompts, [], most)
        assert generate_completions(model, prompts, [], most, decoder=decoder) == wanted
    assert shapes == {(8, 64), (2, 96), (2, 64), (16, 64)}
    # Lightning predicts in inference mode, others do not.
    end = wanted[0][0][1]
    wanted = generate_completions(model, PROMPTS, [end], 24)
    with torch.inference_mode():
        assert generate_completions(model, PROMPTS, [end], 24, decoder=decoder) == wanted
    assert compilations.frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_what_cannot_be_compiled_goes_on_as_it_is(llama: PreTrainedModel, compilations: CompileCounter) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C compiler here")

    wanted = generate_completions(llama, PROMPTS, [], 8)
    with pytest.warns(UserWarning, match="goes on without compiling, which failed here: .*no C compiler here"):
        assert generate_completions(llama, PROMPTS, [], 8, decoder=StaticDecoder(llama, fail)) == wanted


def test_infinities_of_one_batch_are_not_in_the_next(llama: PreTrainedModel) -> None:
    decoder = StaticDecoder(llama)
    wanted = generate_completions(llama, PROMPTS, [], 8)
    generate_completions(llama, PROMPTS, [], 8, decoder=decoder)
    for planes in decoder._memory:
        for plane in planes:
            plane.fill_(math.inf)
    assert generate_completions(llama, PROMPTS, [], 8, decoder=decoder) == wanted


def test_memory_is_held_once_at_one_address_until_more_is_needed(llama: PreTrainedModel) -> None:
    decoder = StaticDecoder(llama)
    generate_completions(llama, PROMPTS, [], 8, decoder=decoder)
    [first, *_], place = decoder._memory[0], decoder._place_1.data_ptr()
    # 5 rows are 8 of 64 tokens; of fewer rows, and of longer ones, as many tokens.
    assert first.numel() == 8 * 64 * 1 * 8
    for prompts, most in ((PROMPTS[:2], 8), (PROMPTS[:2], 200)):
        generate_completions(llama, prompts, [], most, decoder=decoder)
        assert decoder._cache.layers[0].keys.data_ptr() == decoder._memory[0][0].data_ptr() == first.data_ptr()
    gone = weakref.ref(first.untyped_storage())
    del first
    generate_completions(llama, PROMPTS * 4, [], 8, decoder=decoder)
    gc.collect()
    assert gone() is None and decoder._memory[0][0].numel() == 32 * 64 * 8
    assert decoder._place_1.data_ptr() == place


def test_what_a_model_does_not_allow_is_said(llama: PreTrainedModel) -> None:
    many = COMPILED_FROM
    assert choose_decoder(llama, None, many) is None and choose_decoder(llama, "dynamic", many) is None
    assert isinstance(choose_decoder(llama, "static", 1), StaticDecoder)
    sizes = {**SIZES, "state_size": 4}
    mamba = AutoModelForCausalLM.from_config(FalconMambaConfig(**sizes))
    with pytest.raises(ValueError, match="generation=static: layers of falcon_mamba keep more than keys and values"):
        choose_decoder(mamba, "static", many)
    llama.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2 reads the padding" in (find_obstacle(llama) or "")
    on_gpu = type("OnGpu", (), {"device": torch.device("cuda"), "config": llama.config})()
    with pytest.warns(UserWarning, match="generation is not compiled: model.attention flash_attention_2"):
        assert choose_decoder(on_gpu, None, many) is None
    llama.config._attn_implementation = "sdpa"
    on_gpu._can_compile_fullgraph = True
    assert choose_decoder(on_gpu, None, many - 1) is None
    assert isinstance(choose_decoder(on_gpu, None, many), StaticDecoder)


@pytest.mark.gpu
def test_compiled_texts_are_those_of_a_growing_cache() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.manual_seed(0)
    model = build_tiny("gemma-3").eval().requires_grad_(False).cuda()
    decoder = StaticDecoder(model, "inductor")
    for end in (2, 7, 11):
        wanted = generate_completions(model, PROMPTS, [end], NEW_TOKENS)
        assert generate_completions(model, PROMPTS, [end], NEW_TOKENS, decoder=decoder) == wanted
