"""How much each input of each linear layer matters: its mean square over a student's training rationales.

It is what llama.cpp's imatrix holds: rounding a weight costs in proportion to the square of what it is multiplied with.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@torch.inference_mode()
def measure_importance(
    model: PreTrainedModel, texts: Iterable[Sequence[int]], rename: Callable[[str], str | None]
) -> dict[str, np.ndarray]:
    """Returns E[x²] of each linear layer's inputs, float32 [inputs], by GGUF's name of its weight.

    Args:
        model: In evaluation mode.
        texts: Token ids.
        rename: From torch's name of a weight to GGUF's.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head.weight is embedding.weight

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows_NI = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, 0) + rows_NI.square().sum(0).double()
            counts[name] = counts.get(name, 0) + len(rows_NI)

        return add

    hooks = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        names = [rename(f"{path}.weight")]
        if module is head:
            names = ["output.weight", *(["token_embd.weight"] if is_tied else [])]
        hooks += [module.register_forward_pre_hook(watch(name)) for name in names if name is not None]
    try:
        for ids in texts:
            model(input_ids=torch.tensor([[*ids]], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (sums[name] / counts[name]).float().cpu().numpy() for name in sums}
