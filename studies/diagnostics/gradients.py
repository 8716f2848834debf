"""Diagnostics from the student's gradients on single rationales: their size, diversity and agreement."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from studies.diagnostics.metrics import Diagnostic, Fit, Mean, OfSet, OnSet, Values

SPLITS = 10
HELD_OUT = 0.1
SMOOTHING = 1e-3


class GradientSketch:
    """Projects the gradient of all parameters to a few dimensions, and never holds it whole.

    TensorSketch (Pham & Pagh 2013, "Fast and scalable polynomial kernels via explicit feature maps"): entry (i, j) of
    a matrix is added, with a random sign r_i c_j, to place (a_i + b_j) mod d. Inner products are kept on average. The
    gradient of a parameter is dropped as soon as it is projected.

    Args:
        model: Its parameters get a hook each, until `remove`.
        dimension: d.
        seed: Of signs and places.
    """

    def __init__(self, model: nn.Module, dimension: int, seed: int):
        self.dimension = dimension
        self._hooks = []
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            shape = (parameter.shape[0], parameter[0].numel()) if parameter.dim() > 1 else (1, parameter.numel())
            factors = [
                (
                    torch.randint(dimension, (size,), generator=generator).to(parameter.device),
                    (2.0 * torch.randint(2, (size,), generator=generator) - 1).to(parameter.device),
                )
                for size in shape
            ]
            parameter.requires_grad_(True)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._make_hook(shape, factors)))
        self._clear()

    def remove(self) -> None:
        """Leaves the model alone."""
        for hook in self._hooks:
            hook.remove()

    def _clear(self) -> None:
        self.square, self.table_DD = 0.0, torch.zeros(())

    def _make_hook(self, shape: tuple[int, int], factors: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor], None]:
        (row_places, row_signs), (column_places, column_signs) = factors

        def project(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient_RC = parameter.grad.reshape(shape).float()
            self.square += float(gradient_RC.square().sum())
            rows_DC = gradient_RC.new_zeros(self.dimension, shape[1])
            rows_DC.index_add_(0, row_places, gradient_RC * row_signs[:, None])
            table_DD = gradient_RC.new_zeros(self.dimension, self.dimension)
            self.table_DD = self.table_DD.to(table_DD) + table_DD.index_add_(1, column_places, rows_DC * column_signs)
            parameter.grad = None

        return project

    def take(self, loss: Tensor) -> tuple[float, np.ndarray]:
        """Returns the squared norm of the loss's gradient, and its projection [d]."""
        loss.backward()
        places = torch.arange(self.dimension, device=self.table_DD.device)
        # Of a row's place a and a column's place b, the table has the sum at (a, b); it belongs to a + b.
        sketch_D = self.table_DD.gather(1, (places[None] - places[:, None]) % self.dimension).sum(0)
        square = self.square
        self._clear()
        return square, sketch_D.cpu().numpy()


def compute_logits(model: PreTrainedModel, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> Tensor:
    """Returns the logits with which each token of a completion is predicted, float32 [N, V]."""
    ids = torch.tensor([[*prompt_ids, *token_ids]], device=model.device)
    logits_NV: Tensor = model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=len(token_ids)).logits[0]
    return logits_NV[-len(token_ids) :].float()


def compute_loss(model: PreTrainedModel, prompt_ids: list[int], token_ids: list[int]) -> Tensor:
    """Returns the mean cross-entropy of a completion, as a student would train on it alone."""
    logits_NV = compute_logits(model, prompt_ids, token_ids)
    return cross_entropy(logits_NV, torch.tensor(token_ids, device=logits_NV.device))


def g_norm(fit: Fit) -> Values:
    """Mean squared norm of a rationale's gradient: how much the student would have to change."""
    return fit.collect(lambda reading: fit.gradients.get(reading.text.key, (math.nan,))[0])


def g_vendi(fit: Fit) -> OnSet | None:
    """Number of directions that the gradients point to: exp of the entropy of their normalised second moment."""
    return _on_gradients(fit, compute_vendi)


def grace(fit: Fit) -> OnSet | None:
    """GRACE: how large held-out gradients are in the directions that the others do not support."""
    return _on_gradients(fit, compute_grace)


def compute_vendi(sketches_ND: np.ndarray) -> float:
    """Returns exp(-sum w log w) of the eigenvalues w of the mean of h h' / |h|^2."""
    unit_ND = sketches_ND / np.linalg.norm(sketches_ND, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit_ND @ unit_ND.T / len(unit_ND))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def compute_grace(sketches_ND: np.ndarray) -> float:
    """Returns 1/C sum_i Tr((S~(D_-i) + v/d I)^-1 S(D_i)), C random splits into nine tenths and one.

    S is the second moment of the projected gradients h of the mean loss, S~ that of h / |h|, v the smoothing. The
    released code divides h by the root of the number of parameters, which scales it for all teachers alike. With fewer
    gradients than dimensions it says little more than |h|^2, since held-out ones lie where the others have none.
    Computed in the span of the gradients, where S lies, so that d may be large.
    """
    number, dimension = sketches_ND.shape
    _, triangle = np.linalg.qr(sketches_ND.T)
    own = triangle.T.astype(np.float64)
    num_held_out = max(1, int(number * HELD_OUT))
    traces = []
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(number)
        train, held_out = own[order[:-num_held_out]], own[order[-num_held_out:]]
        unit = train / np.linalg.norm(train, axis=1, keepdims=True)
        moment = unit.T @ unit / len(unit) + SMOOTHING / dimension * np.eye(own.shape[1])
        traces.append(np.einsum("nd,dn->", held_out, np.linalg.solve(moment, held_out.T)) / len(held_out))
    return float(np.mean(traces))


def _on_gradients(fit: Fit, function: Callable[[np.ndarray], float]) -> OnSet | None:
    keys = [reading.text.key for reading in fit.readings]
    found = [fit.gradients[key][1] for key in keys if key in fit.gradients]
    if len(found) < 3:
        return None
    sketches_ND = np.stack(found)
    return lambda kept: function(sketches_ND[kept]), len(sketches_ND)


METRICS: list[Diagnostic] = [
    Mean(g_norm, "lower", "arXiv 2511.02833"),
    OfSet(g_vendi, "higher", "Prismatic Synthesis, arXiv 2505.20161; arXiv 2511.02833"),
    OfSet(grace, "lower", "GRACE, arXiv 2511.02833"),
]
