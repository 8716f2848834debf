"""The fused head gives what logits give: gradients of every part, any chunk, low precision; and makes no logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from losses.divergences import get_divergence
from losses.fused_head import Kernel, OutputHead, count_chunk_rows, mix_fused
from losses.mixture import CROSS_ENTROPY, Mixture, mix_rows
from losses.targets import FullTarget, SampledTarget
from tests.losses.conftest import make_sparse_target, pad_support
from tests.losses.reference import DIVERGENCES

N, D, V = 7, 5, 40


def make_inputs(dtype=torch.float64, seed: int = 0) -> tuple:
    """Returns (hidden, weight, bias), with gradients, labels and row weights of which one is 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((N, D), (V, D), (V,))
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes
    ]
    labels, weights = torch.randint(V, (N,), generator=generator), torch.rand(N, generator=generator).double()
    weights[2] = 0.0
    return *tensors, labels, weights.to(torch.promote_types(dtype, torch.float32))


def make_target(kind: str, dtype=torch.float64):
    generator = torch.Generator().manual_seed(9)
    logits = 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    if kind == "full":
        # A teacher with fewer ids than the student's padded head, and a cap of its own.
        return FullTarget(logits[:, :6].to(dtype), torch.randn(V - 3, 6, generator=generator).to(dtype), None, 4.0)
    if kind == "sampled":
        target = make_sparse_target(logits.numpy(), 6)
        weights = target.log_probs_NK.exp()
        return pad_support_of_sample(SampledTarget(target.support_NK, weights / weights.sum(-1, keepdim=True)))
    top_k = V if kind == "covering" else 6
    target = make_sparse_target(logits.numpy(), top_k, dtype=torch.promote_types(dtype, torch.float32))
    return pad_support(target, 2) if kind == "padded" else target


def pad_support_of_sample(target: SampledTarget) -> SampledTarget:
    return SampledTarget(F.pad(target.support_NK, (0, 2), value=-1), F.pad(target.weights_NK, (0, 2)))


def dense(hidden, head: OutputHead, labels, weights, target, mixture: Mixture):
    rows = mix_rows(head.project(hidden), labels, target, mixture)
    return (weights * rows.loss_N).sum(), rows.statistics


KINDS = ["none", "sparse", "padded", "covering", "sampled", "full"]
CASES = [
    (kind, name, temperature)
    for kind in KINDS
    for name in (DIVERGENCES if kind not in ("none", "sampled") else ["forward_kl", "soft_cross_entropy"])
    for temperature in ((1.0,) if kind in ("none", "sampled") else (1.0, 2.0))
]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("kind", "name", "temperature"), CASES)
def test_total_gradients_and_statistics_are_the_dense_ones(kind, name, temperature, softcap) -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    target = None if kind == "none" else make_target(kind)
    kl_weight = 0.0 if target is None else 0.3
    mixture = Mixture(kl_weight, temperature, get_divergence(name, **DIVERGENCES[name]))
    head = OutputHead(weight, bias, scale=0.7, softcap=softcap)
    results = []
    for road in (dense, mix_fused):
        options = {"chunk_bytes": 4 * V * 3} if road is mix_fused else {}
        total, statistics = road(hidden, head, labels, weights, target, mixture, **options)
        results.append((total, torch.autograd.grad(total, (hidden, weight, bias)), statistics))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [1, 2, 6, 7, 100])
def test_the_chunk_plays_no_part(rows: int) -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    mixture = Mixture(0.5, 2.0, get_divergence("jsd"))
    arguments = (hidden, OutputHead(weight, bias), labels, weights, make_target("sparse"), mixture)
    total, _ = mix_fused(*arguments, chunk_bytes=4 * V * rows)
    expected, _ = mix_fused(*arguments)
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=0)
    for found, whole in zip(*(torch.autograd.grad(t, (hidden, weight, bias)) for t in (total, expected)), strict=True):
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-14)


def test_gradcheck() -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    for kind in ("none", "sparse", "full"):
        target = None if kind == "none" else make_target(kind)
        mixture = CROSS_ENTROPY if target is None else Mixture(0.4, 2.0, get_divergence("reverse_kl"))

        class Anew(torch.autograd.Function):
            """gradcheck goes backward several times, so every time begins with a forward pass of its own."""

            @staticmethod
            def forward(ctx, h, w, b, target=target, mixture=mixture):
                with torch.enable_grad():
                    inputs = [tensor.detach().requires_grad_() for tensor in (h, w, b)]
                    head = OutputHead(*inputs[1:], 1.3, 5.0)
                    total, _ = mix_fused(inputs[0], head, labels, weights, target, mixture, 4 * V * 2)
                    ctx.save_for_backward(*torch.autograd.grad(total, inputs))
                return total.detach()

            @staticmethod
            def backward(ctx, d_total):
                return tuple(d_total * gradient for gradient in ctx.saved_tensors)

        assert torch.autograd.gradcheck(Anew.apply, (hidden, weight, bias))


def test_a_tied_head_adds_its_gradient_to_the_embeddings() -> None:
    _, weight, _, labels, weights = make_inputs()
    mixture, target = Mixture(0.5, 1.0, get_divergence("forward_kl")), make_target("sparse")
    gradients = []
    for road in (dense, mix_fused):
        hidden = torch.tanh(F.embedding(labels.flip(0), weight))
        total, _ = road(hidden, OutputHead(weight), labels, weights, target, mixture)
        gradients += torch.autograd.grad(total, weight)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_frozen_head_gets_no_gradient_and_costs_no_product() -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    frozen, target = weight.detach(), make_target("sparse")
    mixture = Mixture(0.5, 1.0, get_divergence("forward_kl"))
    with Recorder() as recorder:
        total, _ = mix_fused(hidden, OutputHead(frozen, bias), labels, weights, target, mixture)
    assert recorder.calls["addmm_"] == 0
    expected, _ = dense(hidden, OutputHead(frozen, bias), labels, weights, target, mixture)
    for found, whole in zip(*(torch.autograd.grad(t, (hidden, bias)) for t in (total, expected)), strict=True):
        torch.testing.assert_close(found, whole)


def test_without_gradients_only_the_forward_product_is_computed() -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    with torch.no_grad(), Recorder() as recorder:
        total, _ = mix_fused(hidden, OutputHead(weight, bias), labels, weights, None, CROSS_ENTROPY)
    assert (recorder.calls["addmm"], recorder.calls["mm"], recorder.calls["addmm_"]) == (1, 0, 0)
    expected, _ = dense(hidden, OutputHead(weight, bias), labels, weights, None, CROSS_ENTROPY)
    assert total.item() == pytest.approx(expected.item())


def test_gradients_are_scaled_and_used_once() -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    total, _ = mix_fused(hidden, OutputHead(weight, bias), labels, weights, None, CROSS_ENTROPY)
    expected = torch.autograd.grad(
        dense(hidden, OutputHead(weight, bias), labels, weights, None, CROSS_ENTROPY)[0], weight
    )
    (gradient,) = torch.autograd.grad(total / 8, weight, retain_graph=True)
    torch.testing.assert_close(8 * gradient, expected[0])
    with pytest.raises(RuntimeError, match="used up"):
        torch.autograd.grad(total, weight)


@pytest.mark.parametrize("kind", ["none", "sparse", "full"])
def test_no_rows_and_rows_without_weight(kind: str) -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    target = None if kind == "none" else make_target(kind)
    mixture = CROSS_ENTROPY if target is None else Mixture(1.0, 2.0, get_divergence("reverse_kl"))
    for rows in (0, N):
        part = None if target is None else target.rows(0, rows)
        total, statistics = mix_fused(
            hidden[:rows], OutputHead(weight, bias), labels[:rows], 0 * weights[:rows], part, mixture
        )
        assert total.item() == 0 and all(len(value) == rows for value in statistics.values())
        for gradient in torch.autograd.grad(total, (hidden, weight, bias)):
            assert gradient.eq(0).all()


def test_a_row_without_weight_may_be_infinitely_far() -> None:
    """The student rules out a token that the teacher has, in a row that does not count."""
    hidden, weight, bias, labels, weights = make_inputs()
    with torch.no_grad():
        bias[labels[2]] = -torch.inf
    labels = torch.where(labels == labels[2], (labels + 1) % V, labels)
    labels[2] = bias.argmin()
    total, _ = mix_fused(hidden, OutputHead(weight, bias), labels, weights, None, CROSS_ENTROPY)
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(total, (hidden, weight)))


@pytest.mark.parametrize("kind", ["none", "sparse", "full"])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_bfloat16_is_no_worse_than_dense_bfloat16(kind: str, name: str) -> None:
    """Errors against float64 truth, as norms over 40 draws of the inputs: single roundings may fall either way."""
    errors = {"dense": 0.0, "fused": 0.0}
    size = 0.0
    for seed in range(40):
        low = make_inputs(torch.bfloat16, seed)
        exact = [tensor.detach().double().requires_grad_() for tensor in low[:3]]
        mixture = Mixture(0.0 if kind == "none" else 0.5, 1.0, get_divergence(name))
        target = None if kind == "none" else make_target(kind)
        total, _ = dense(exact[0], OutputHead(*exact[1:]), low[3], low[4].double(), target, mixture)
        truth = torch.autograd.grad(total, exact)
        if kind != "none":
            target = make_target(kind, torch.bfloat16)
        for label, road, options in (("dense", dense, {}), ("fused", mix_fused, {"chunk_bytes": 4 * V * 2})):
            total, _ = road(low[0], OutputHead(*low[1:3]), low[3], low[4], target, mixture, **options)
            assert total.dtype == torch.float32
            found = torch.autograd.grad(total, low[:3])
            assert {gradient.dtype for gradient in found} == {torch.bfloat16}
            errors[label] += sum((f.double() - t).square().sum().item() for f, t in zip(found, truth, strict=True))
        size += sum(gradient.square().sum().item() for gradient in truth)
    assert errors["fused"] <= 1.05 * errors["dense"]
    assert errors["fused"] ** 0.5 <= 2**-6 * size**0.5


def test_the_weights_gradient_is_accumulated_in_float32() -> None:
    """4096 rows in chunks of one: in bfloat16 the sum would stop growing."""
    rows = 4096
    hidden, weight = (
        torch.ones(rows, 1, dtype=torch.bfloat16),
        torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True),
    )
    labels, weights = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
    total, _ = mix_fused(hidden, OutputHead(weight), labels, weights, None, CROSS_ENTROPY, chunk_bytes=1)
    (gradient,) = torch.autograd.grad(total, weight)
    assert gradient.flatten().tolist() == [-rows / 2, rows / 2]


def test_autocast_multiplies_in_its_own_dtype_and_returns_the_weights() -> None:
    hidden, weight, bias, labels, weights = make_inputs(torch.float32)
    mixture, target = Mixture(0.5, 1.0, get_divergence("forward_kl")), make_target("sparse", torch.float32)
    results = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for road in (dense, mix_fused):
            total, _ = road(hidden, OutputHead(weight, bias), labels, weights, target, mixture)
            results.append((total, torch.autograd.grad(total, (hidden, weight, bias))))
    assert {gradient.dtype for gradient in results[1][1]} == {torch.float32}
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=5e-2)
    # What float32 accumulated stays float32: no rounding to the products' dtype at the end.
    for gradient in results[1][1][1:]:
        assert (gradient != gradient.bfloat16()).float().mean() > 0.5


def test_a_gpus_chunk_is_whole_tiles() -> None:
    rows = {(device, size): count_chunk_rows(device, size, 4) for device in ("cpu", "cuda") for size in (3, 400, 3532)}
    assert rows == {
        ("cpu", 3): 1, ("cpu", 400): 100, ("cpu", 3532): 883,
        ("cuda", 3): 1, ("cuda", 400): 100, ("cuda", 3532): 768,
    }  # fmt: skip


class Recorder(TorchDispatchMode):
    """Counts the products, and keeps the size of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = {"mm": 0, "addmm_": 0}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["none", "sparse", "sampled", "full"])
def test_logits_never_exist(kind: str) -> None:
    hidden, weight, bias, labels, weights = make_inputs()
    target = None if kind == "none" else make_target(kind)
    mixture = CROSS_ENTROPY if target is None else Mixture(0.5, 1.0, get_divergence("forward_kl"))
    with Recorder() as recorder:
        total, _ = mix_fused(hidden, OutputHead(weight, bias), labels, weights, target, mixture, 4 * V * 2)
        total.backward()
    # Two rows of logits, or a head.
    heads = [weight.numel()] + ([target.weight_VD.numel()] if kind == "full" else [])
    assert recorder.largest == max(2 * V, *heads) < N * V


def test_a_vocabulary_of_262144() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 4, generator=generator, requires_grad=True)
    weight = torch.randn(262_144, 4, generator=generator)
    labels = torch.tensor([0, 262_143, 65_536])
    teacher = torch.randn(3, 6, generator=generator).numpy()
    target = make_sparse_target(teacher, 4, dtype=torch.float32)
    target = target._replace(support_NK=target.support_NK * 52_428)
    mixture = Mixture(0.5, 2.0, get_divergence("forward_kl"))
    results = []
    for road in (dense, mix_fused):
        total, _ = road(hidden, OutputHead(weight), labels, torch.ones(3), target, mixture)
        results.append((total, *torch.autograd.grad(total, hidden)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["torch", "triton", None])
@pytest.mark.parametrize("kind", ["none", "sparse", "full"])
def test_bfloat16_on_a_gpu(kind: str, kernel: Kernel | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    low = [tensor.detach().cuda().requires_grad_() for tensor in make_inputs(torch.bfloat16)[:3]]
    exact = [tensor.detach().double().requires_grad_() for tensor in low]
    labels, weights = (tensor.cuda() for tensor in make_inputs()[3:])
    mixture = Mixture(0.0 if kind == "none" else 0.5, 1.0, get_divergence("forward_kl"))
    target = None if kind == "none" else make_target(kind)
    if target is not None:
        target = type(target)(*(part.cuda() if isinstance(part, torch.Tensor) else part for part in target))
    total, _ = dense(exact[0], OutputHead(*exact[1:]), labels, weights, target, mixture)
    truth = torch.autograd.grad(total, exact)
    rows = (low[0], OutputHead(*low[1:]), labels, weights.float(), target, mixture)
    total, _ = mix_fused(*rows, chunk_bytes=4 * V * 2, kernel=kernel)
    for found, gradient in zip(torch.autograd.grad(total, low), truth, strict=True):
        assert (found.double() - gradient).norm() <= 2**-6 * gradient.norm()
