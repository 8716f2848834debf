"""Batched generation with a causal language model, and the log-likelihood of given completions."""

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from datamodules.batching import pad_rows


def generate_completions(
    model: PreTrainedModel,
    input_ids_BS: Tensor,
    attention_mask_BS: Tensor,
    eos_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    num_samples: int = 1,
) -> list[tuple[list[int], str]]:
    """Continues each left-padded prompt.

    Args:
        model: The model, in evaluation mode.
        input_ids_BS: Prompts, padded on the left.
        attention_mask_BS: 0 where padded.
        eos_id: Ends a completion, beside the end tokens of the model's own generation settings.
        max_new_tokens: Truncates a completion.
        temperature: 0 is greedy.
        num_samples: Completions of each prompt; more than one needs a temperature.

    Returns:
        B * num_samples pairs of (token ids without the end token, `stop` or `length`), prompt by prompt.
    """
    # Of the model's own settings only the end tokens are kept: published models bring repetition penalties and
    # truncated sampling, which would fill in whatever is not given here.
    own = model.generation_config.eos_token_id
    end_ids = sorted({eos_id, *(own if isinstance(own, list) else [own] if own is not None else [])})
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_samples,
        eos_token_id=end_ids,
        pad_token_id=eos_id,
        **sampling,
    )
    own_config, model.generation_config = model.generation_config, GenerationConfig()
    try:
        generated = model.generate(input_ids_BS, attention_mask=attention_mask_BS, generation_config=config)
    finally:
        model.generation_config = own_config
    completions = []
    for row in generated[:, input_ids_BS.shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in end_ids), None)
        completions.append((row[:end], "length" if end is None else "stop"))
    return completions


def score_completions(
    model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]], pad_id: int
) -> list[float]:
    """Returns log p(completion | prompt) of each pair, in nats."""
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    input_ids_BS = pad_rows(rows, pad_id).to(model.device)
    attention_mask_BS = pad_rows([[1] * len(row) for row in rows], 0).to(model.device)
    logits_BSV = model(input_ids=input_ids_BS, attention_mask=attention_mask_BS).logits
    scores = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        span = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        log_p_LV = logits_BSV[number, span].float().log_softmax(-1)
        scores.append(log_p_LV.gather(-1, torch.tensor(completion, device=model.device)[:, None]).sum().item())
    return scores
