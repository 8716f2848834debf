"""A student's likelihood of a teacher's rationale, and the distance of its distributions from the teacher's."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from datamodules.batches.packing import collate_examples, order_by_length, pack
from datamodules.batches.teacher_rows import collate_targets
from datamodules.evaluation import Reference
from datamodules.examples.tokenization import PROMPT
from lightning_modules.model.row_head import RowHead
from lightning_modules.student.cached_targets import build_target, load_teacher_head
from losses.divergences import forward_kl
from losses.mixture import CROSS_ENTROPY, Mixture, mix_rows
from losses.targets import ChunkTarget, DrawnTarget

FORWARD_KL = Mixture(kl_weight=1.0, temperature=1.0, divergence=forward_kl)


class ReferenceScorer:
    """Reads each (prompt, rationale) once, teacher-forced.

    Args:
        model: The student.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.head = model, RowHead(model)

    def score(self, references: Sequence[Reference], tokens_per_batch: int) -> list[dict[str, Any]]:
        """Returns for each reference, in order, its teacher, `num_tokens`, and sums over these tokens.

        `log_likelihood`, in nats; and, where the teacher's distributions are cached, else None: `num_compared`, of how
        many of the tokens they say something, which is all but where a cache of another tokenizer is aligned; and, over
        these, `kl`, of the teacher's from the student's at temperature 1, in nats, the teacher's tail as one outcome,
        and `agreement`, 1 where both have the same most probable token.

        Args:
            references: Of any questions.
            tokens_per_batch: Budget of a batch, in padded tokens.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for number, reference in enumerate(references):
            groups["" if reference.cache is None else str(reference.cache.folder)].append(number)
        scores: dict[int, dict[str, Any]] = {}
        for numbers in groups.values():
            lengths = np.array([len(references[number].example.token_ids) for number in numbers])
            for batch in pack(order_by_length(lengths, None), lengths, tokens_per_batch):
                chosen = [numbers[place] for place in batch]
                scores |= dict(zip(chosen, self._score_batch([references[number] for number in chosen]), strict=True))
        return [scores[number] for number in range(len(references))]

    @torch.inference_mode()
    def _score_batch(self, references: list[Reference]) -> list[dict[str, Any]]:
        """Scores references that have the same cache, or none."""
        examples = [reference.example for reference in references]
        batch = collate_examples(examples)
        batch = {name: value.to(self.model.device) if name != "example_ids" else value for name, value in batch.items()}
        cache, target, mixture = references[0].cache, None, CROSS_ENTROPY
        if cache is not None:
            planes = collate_targets(examples, {example.id: cache for example in examples})
            planes = {name: plane.to(self.model.device) for name, plane in planes.items()}
            head = load_teacher_head(cache, self.model.device)
            target, mixture = build_target(planes, cache.description.temperatures, head), FORWARD_KL
        assert not isinstance(target, ChunkTarget | DrawnTarget)
        parts, start = [], 0
        for logits_NV in self.head.run(batch).iterate_logits():
            stop = start + len(logits_NV)
            rows = None if target is None else target.rows(start, stop)
            statistics = mix_rows(logits_NV, batch["labels"][start:stop], rows, mixture).statistics
            columns = [statistics["ce"]]
            if rows is not None:
                has_N = rows.has_target_N
                known_N = torch.ones_like(columns[0]) if has_N is None else has_N.to(columns[0])
                columns += [statistics["divergence"] * known_N, statistics["agreement"] * known_N, known_N]
            parts.append(torch.stack([column.double() for column in columns], -1))
            start = stop
        counts = [int((example.segments != PROMPT).sum()) for example in examples]
        sums = [part.sum(0).tolist() for part in torch.cat(parts).split(counts)]
        return [
            {
                "teacher": reference.rationale.teacher,
                "sample": reference.rationale.sample,
                "num_tokens": count,
                "num_compared": int(compared[2]) if compared else None,
                "log_likelihood": -ce,
                "kl": compared[0] if compared else None,
                "agreement": compared[1] if compared else None,
            }
            for reference, count, (ce, *compared) in zip(references, counts, sums, strict=True)
        ]
