"""Tests of importance: the mean square of each layer's inputs, by hand."""

import numpy as np
import torch

from lightning_modules.export.importance import measure_importance
from tests.tiny import build_llama


def test_it_is_the_mean_square_over_all_tokens() -> None:
    model = build_llama(50, tie_word_embeddings=True)
    texts = [[3, 4, 5, 6], [7, 8]]
    found = measure_importance(model, texts, lambda name: name)
    with torch.inference_mode():
        states = [model.model(torch.tensor([ids])).last_hidden_state[0] for ids in texts]
    wanted = torch.cat(states).square().mean(0).numpy()
    np.testing.assert_allclose(found["output.weight"], wanted, rtol=1e-5)
    np.testing.assert_allclose(found["token_embd.weight"], wanted, rtol=1e-5)
    assert found["model.layers.1.mlp.down_proj.weight"].shape == (32,)
    # Two layers of seven, and the head under two names; the hooks are gone.
    assert len(found) == 16 and not any(module._forward_pre_hooks for module in model.modules())
