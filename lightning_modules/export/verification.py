"""Whether a GGUF file is the student: its tokens, template, end, greedy texts, and distributions; refused where not."""

import json
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datamodules.examples.encoding import encode_texts, find_end_tokens, render_chat
from lightning_modules.evaluation.proportions import wilson_interval
from lightning_modules.export.probes import Probes
from lightning_modules.export.vocabulary import puts_start
from lightning_modules.model.generation import generate_completions
from lightning_modules.model.llama_cpp import LlamaCpp

# By type: most nats a token that its distributions may differ by, and least share of tokens it would choose alike.
BOUNDS = {
    "f32": (0.001, 0.99),
    "f16": (0.001, 0.99),
    "bf16": (0.01, 0.97),
    "Q8_0": (0.02, 0.95),
    "Q6_K": (0.05, 0.92),
    "Q5_K_M": (0.15, 0.85),
    "Q4_K_M": (0.3, 0.8),
    "Q4_0": (0.8, 0.65),
}
# Two next tokens whose logits are that close are a tie: sums in another order may choose either.
TIE = 0.02
# Seconds in which llama.cpp's server loads a file and renders a few prompts.
PATIENCE = 300
_RENDER = """
import json, os, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.warmup, params.port = sys.argv[1], 256, False, 0
server = xllamacpp.Server(params)
texts = []
messages, options = json.load(sys.stdin)
for message in messages:
    content = {"messages": [{"role": "user", "content": message}], "chat_template_kwargs": options}
    headers = {"Content-Type": "application/json"}
    address = server.listening_address + "/apply-template"
    request = urllib.request.Request(address, json.dumps(content).encode(), headers)
    texts.append(json.load(urllib.request.urlopen(request))["prompt"])
print("\\n" + json.dumps(texts), flush=True)
os._exit(0)
"""


def render_by_llama_cpp(path: Path, messages: list[str], options: Mapping[str, Any]) -> list[str]:
    """Returns the prompts that llama.cpp's server makes of users' messages with the file's chat template.

    Args:
        path: The file.
        messages: The users'.
        options: What the template is told beside a message.

    Raises:
        ValueError: It cannot, or not in time.
    """
    command = [sys.executable, "-c", _RENDER, str(path)]
    try:
        asked = json.dumps([messages, options])
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{path.name}: llama.cpp has not rendered its chat template in {PATIENCE} s; export on a machine that is "
            "less busy, or has more memory"
        ) from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise ValueError(f"{path.name}: llama.cpp cannot render its chat template: {(lines or ['no word'])[-1][:300]}")
    texts: list[str] = json.loads(done.stdout.splitlines()[-1])
    return texts


def check_tokens(model: LlamaCpp, name: str, tokenizer: PreTrainedTokenizerBase, probes: Probes) -> int:
    """Returns on how many texts the file's token ids are the tokenizer's.

    Raises:
        ValueError: They are not on all; a prompt has another start; texts end elsewhere; or there is another template.
    """
    wanted = [own.ids for own in encode_texts(tokenizer, probes.texts)]
    for text, ids in zip(probes.texts, wanted, strict=True):
        if (found := model.tokenize(text)) != ids:
            raise ValueError(f"{name}: llama.cpp reads {json.dumps(text[:60])} as tokens {found[:12]}, not {ids[:12]}")
    start = str(tokenizer.bos_token) if puts_start(tokenizer) else ""
    for text, ids in probes.prompts:
        found = model.tokenize(text.removeprefix(start), add_special=True, parse_special=True)
        if found != ids:
            raise ValueError(f"{name}: llama.cpp reads a prompt as tokens {found[:12]}, not {ids[:12]}")
        if start and ids.count(tokenizer.bos_token_id) != 1:
            raise ValueError(f"{name}: a prompt has {ids.count(tokenizer.bos_token_id)} start tokens, not one")
    end = find_end_tokens(tokenizer)[0]
    if model.end_id != end or not model.ends(end):
        raise ValueError(f"{name}: ends texts with token {model.end_id}, but the student learned to write {end}")
    own = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if model.chat_template != own:
        raise ValueError(f"{name}: holds another chat template than the student's tokenizer")
    return len(wanted)


def check_template(path: Path, tokenizer: PreTrainedTokenizerBase, probes: Probes) -> None:
    """Raises a ValueError if llama.cpp's server poses a question otherwise than the student learned it.

    Warns where it does so only if it is told the template's options.
    """
    messages, options = [question.question for question in probes.questions[:8]], probes.prompt.template_options
    wanted, plain = (
        ["".join(piece.text for piece in render_chat(tokenizer, message, own)) for message in messages]
        for own in (options, {})
    )
    start = str(tokenizer.bos_token) if puts_start(tokenizer) else ""
    for text, own in zip(render_by_llama_cpp(path, messages, options), wanted, strict=True):
        if text.removeprefix(start) != own.removeprefix(start):
            raise ValueError(f"{path.name}: llama.cpp renders a prompt as {json.dumps(text[-80:])}, not {own[-80:]!r}")
    if plain != wanted:
        warnings.warn(
            "llama.cpp's server poses questions otherwise than the student learned, unless it is given: "
            f"--chat-template-kwargs {shlex.quote(json.dumps(options))}",
            stacklevel=2,
        )


@torch.inference_mode()
def compare_greedy(
    model: LlamaCpp, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Probes, most: int
) -> dict[str, Any]:
    """Returns on how many prompts the greedy texts are the student's, and how many of the others part at a tie.

    Args:
        model: The file.
        reference: The student.
        tokenizer: The student's.
        probes: With the prompts.
        most: Tokens of a text.
    """
    ends, prompts = find_end_tokens(tokenizer), [ids for _, ids in probes.prompts]
    wanted = [
        ids
        for n in range(0, len(prompts), 10)
        for ids, _ in generate_completions(reference, prompts[n : n + 10], ends, most)
    ]
    equal, ties = 0, 0
    for prompt, own in zip(prompts, wanted, strict=True):
        model.forget()
        found, _ = model.generate(prompt, ends, most)
        place = next((n for n, pair in enumerate(zip(own, found, strict=False)) if pair[0] != pair[1]), None)
        if own == found:
            equal += 1
        else:
            place = min(len(own), len(found)) if place is None else place
            logits_V = reference(torch.tensor([[*prompt, *own[:place]]])).logits[0, -1].float()
            first, second = logits_V.topk(2).values.tolist()
            ties += first - second < TIE
    return {"prompts": len(prompts), "greedy_equal": equal, "greedy_ties": ties}


@torch.inference_mode()
def compare_distributions(
    models: Mapping[str, LlamaCpp], reference: Callable[[list[int]], torch.Tensor], probes: Probes
) -> dict[str, dict[str, float]]:
    """Returns by type the KL divergence from the student, in nats a token, its standard error, and tokens chosen alike.

    Args:
        models: Files by type.
        reference: Returns a text's logits, [tokens, vocabulary].
        probes: With the rationales, whose completions' tokens count.
    """
    sums = {kind: np.zeros(4) for kind in models}
    for example in probes.measured:
        ids = example.token_ids.tolist()
        number = len(ids) - example.num_prompt_tokens
        wanted_RV = reference(ids)[-number - 1 : -1].double().log_softmax(-1)
        for kind, model in models.items():
            model.forget()
            found_RV = torch.from_numpy(model.read(ids[:-1], number)).double().log_softmax(-1)
            found_RV = found_RV[:, : wanted_RV.shape[1]]
            kl_R = (wanted_RV.exp() * (wanted_RV - found_RV)).sum(-1)
            alike = (wanted_RV.argmax(-1) == found_RV.argmax(-1)).sum()
            sums[kind] += [float(kl_R.sum()), float(kl_R.square().sum()), float(alike), number]
    return {
        kind: {
            "kl": float(kl / tokens),
            "kl_error": float(np.sqrt(max(squares / tokens - (kl / tokens) ** 2, 0) / tokens)),
            "top1_agreement": float(alike / tokens),
            "tokens": int(tokens),
        }
        for kind, (kl, squares, alike, tokens) in sums.items()
    }


def refuse_difference(kind: str, found: Mapping[str, Any]) -> None:
    """Raises a ValueError if a file's distributions differ by more than its type's rounding may make them.

    Answers alone are few tokens: what chance may do among them is no reason.
    """
    most, least = BOUNDS[kind]
    _, highest = wilson_interval(found["top1_agreement"] * found["tokens"], found["tokens"])
    if found["kl"] - 2 * found["kl_error"] > most or highest < least:
        raise ValueError(
            f"{kind}: differs from the student by {found['kl']:.4f} nats a token (at most {most}), and would choose "
            f"{found['top1_agreement']:.1%} of the tokens alike (at least {least:.0%}); it is not written"
        )
    if "greedy_equal" in found and found["greedy_equal"] + found["greedy_ties"] < found["prompts"]:
        raise ValueError(
            f"{kind}: {found['prompts'] - found['greedy_equal'] - found['greedy_ties']} of {found['prompts']} greedy "
            "texts are not the student's; it is not written"
        )
