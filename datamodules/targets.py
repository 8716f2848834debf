"""The teacher's rows of a batch, as the loss reads them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from datamodules.logit_cache import LogitCache
from datamodules.tokenization import Example

PLANES = ("support", "log_probs", "log_normalizers", "log_tails")


def collate_targets(examples: Sequence[Example], caches: Mapping[str, LogitCache]) -> dict[str, torch.Tensor]:
    """Returns the teacher's distributions of a batch, one row per completion token, in the examples' order.

    Args:
        examples: The batch.
        caches: By example id.

    Returns:
        `support` int64 [N, k]; `log_probs` float32 [N, k]; `log_normalizers` and `log_tails` float32 [N, T].
    """
    read = [caches[example.id].read(example) for example in examples]
    target = {name: torch.from_numpy(np.concatenate([planes[name] for planes in read])) for name in PLANES}
    return {**target, "support": target["support"].long()}
