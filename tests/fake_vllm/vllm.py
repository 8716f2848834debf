"""Answers to vLLM's calls with transformers, where vLLM itself cannot run: put this folder on the path."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

SamplingParams = dict
TokensPrompt = dict


class LLM:
    """An engine that generates greedily, one prompt after the other."""

    def __init__(self, model: str, **options: Any):
        assert options["trust_remote_code"] is False and options["generation_config"] == "vllm"
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()

    def generate(self, prompts: list[dict], sampling: list[dict], use_tqdm: bool) -> list[SimpleNamespace]:
        return [self._answer(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, sampling, strict=True)]

    @torch.no_grad()
    def _answer(self, prompt: list[int], sampling: dict) -> SimpleNamespace:
        assert sampling["temperature"] == 0
        written = self.model.generate(
            torch.tensor([prompt]),
            max_new_tokens=sampling["max_tokens"],
            do_sample=False,
            eos_token_id=sampling["stop_token_ids"],
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        reason = "stop" if written[-1] in sampling["stop_token_ids"] else "length"
        answer = SimpleNamespace(token_ids=written, text="", finish_reason=reason)
        return SimpleNamespace(request_id="0", prompt_token_ids=prompt, outputs=[answer])
