"""How fast random students train, and what a teacher costs: whole optimizer steps in bf16-mixed.

SIZE_sft, _kd_dense, _kd_cached    tokens/s of cross-entropy alone, of a teacher's whole distributions given by
its hidden states, and of its 64 most probable tokens; against SIZE_sft
SIZE_..._mfu                       share of the device's peak that the student's own operations reach

python -m scripts.benchmark training --device=cuda
"""

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.model.output_head import HeadSettings, get_head, run_body
from lightning_modules.run.throughput import StepFlops, find_peak_flops
from losses.distillation import DistillationLoss
from losses.targets import FullTarget, SparseTarget, Target
from scripts.benchmarks.inputs import make_parser
from scripts.benchmarks.measure import Measurement, compare
from scripts.benchmarks.turns import Turn, race_apart

WARM_UP_STEPS = 5
# Those of SmolLM2-135M and of Llama-3.2-1B; the smallest only shows that the code runs.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
}
WIDTHS = {"tiny": (128, 1024), "135m": (1536, 49_152), "1b": (8192, 128_256)}  # feed-forward, vocabulary
KINDS = ("sft", "kd_dense", "kd_cached")
K = 64


def make_target(kind: str, rows: int, width: int, vocabulary: int, device: str) -> Target | None:
    """Makes a teacher's rows; None for sft."""
    if kind == "sft":
        return None
    if kind == "kd_dense":
        options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
        return FullTarget(torch.randn(rows, width, **options), torch.randn(vocabulary, width, **options) / width**0.5)
    support_NK = torch.randint(vocabulary // K, (rows, K), device=device)
    support_NK += torch.arange(K, device=device) * (vocabulary // K)
    tail_N = torch.full((rows,), 0.05, device=device)
    log_p_NK = torch.randn(rows, K, device=device).log_softmax(-1) + torch.log1p(-tail_N)[:, None]
    return SparseTarget(support_NK, log_p_NK, torch.zeros_like(tail_N)[:, None], tail_N.log()[:, None], (1.0,))


def measure_steps(turn: Turn, size: str, kind: str, device: str, batch: int, length: int, steps: int) -> float | None:
    """Takes a turn for each whole step of a random student; half of each sequence is supervised.

    Returns:
        The seconds of a step at the peak of the device; None where it is not known.
    """
    torch.manual_seed(0)
    intermediate, vocabulary = WIDTHS[size]
    config = LlamaConfig(
        **SIZES[size],
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids_BS = torch.randint(vocabulary, (batch, length), device=device)
    positions_BS = torch.arange(batch * length, device=device).view(batch, length)
    rows_N = positions_BS[:, length // 2 - 1 : -1].flatten()
    labels_N = ids_BS[:, length // 2 :].flatten()
    target = make_target(kind, len(rows_N), config.hidden_size, vocabulary, device)
    loss = DistillationLoss(kl_weight=0.0 if kind == "sft" else 0.5).at(0.0)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16):
            hidden_ND = rearrange(run_body(model, ids_BS, torch.ones_like(ids_BS)), "b s d -> (b s) d")[rows_N]
            head = get_head(model, HeadSettings())
            sums = loss.from_hidden(hidden_ND, head, labels_N, torch.zeros_like(labels_N, dtype=torch.bool), target)
        (sums.total / sums.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        return sums.total.item()  # waits for the device

    for _ in range(WARM_UP_STEPS):
        step()
    for _ in range(steps):
        turn.start()
        step()
        turn.stop(batch * length)
    peak = find_peak_flops(torch.device(device), torch.bfloat16)
    flops = StepFlops(model)(batch * length, batch * length**2, len(rows_N))
    return flops / peak if peak else None


def run(args: list[str]) -> Iterator[Measurement]:
    """Yields the measurements."""
    parser = make_parser("training", __doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="of students; null is 135m and 1b, on a CPU tiny")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of each")
    given = parser.parse_args(args)
    if given.smoke:
        given.steps, given.batch, given.length = 2, 2, 32
    for size in given.sizes or (("135m", "1b") if given.device == "cuda" else ("tiny",)):
        options = (given.device, given.batch, given.length, given.steps)
        found = race_apart({kind: (measure_steps, size, kind, *options) for kind in KINDS})
        for kind, (costs, ideal) in found.items():
            yield from compare(f"{size}_{kind}", costs, found["sft"][0], "tokens/s")
            if ideal is not None:
                yield Measurement(f"{size}_{kind}_mfu", ideal / statistics.median(costs.wall), "of peak")
