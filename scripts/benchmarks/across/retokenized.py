"""A student of the microworld's family b with another tokenizer, so that pairs have tokens that are not strict ones.

Every fourth word of the world is two tokens, and frequent pairs of words are one. The student is b's, whose embeddings
are those of the tokens that stay, and means of the parts of those that are new; then it reads b's pre-training texts.
"""

import json
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.examples.tokenization import load_tokenizer
from datamodules.tasks.microworld import KINDS, pretraining_pairs
from lightning_modules.model.pretrained import load_causal_lm
from scripts.microworld.families import SPACE
from scripts.microworld.measuring import encode
from scripts.microworld.pretraining import save, train_step
from studies.inputs.cache_runs import MICROWORLD

SPLIT_WORDS = [word for kind in KINDS for word in kind[1::4]]
JOINED = [("leads", "to"), ("to", "the"), ("we", "get"), ("is", "pure")]


def retokenize(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerFast, list[list[int]]]:
    """Returns a BPE tokenizer with other merges, and for each of its ids the old ids that it is made of."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    dropped = {SPACE + word for word in SPLIT_WORDS}
    old = state["model"]["vocab"]
    kept = [token for token in sorted(old, key=old.__getitem__) if token not in dropped]
    pairs = [(SPACE + first, SPACE + second) for first, second in JOINED]
    vocabulary = {token: index for index, token in enumerate([*kept, *map("".join, pairs)])}
    merges = [pair for pair in map(tuple, state["model"]["merges"]) if "".join(pair) in vocabulary]
    state["model"] |= {"vocab": vocabulary, "merges": [*merges, *pairs]}
    backend = Tokenizer.from_str(json.dumps(state))
    # Merges reach over words.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(SPACE, prepend_scheme="first", split=False)
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    return made, [*([old[token]] for token in kept), *([old[first], old[second]] for first, second in pairs)]


def build(folder: Path, steps: int, batch: int = 32, lr: float = 1e-3) -> str:
    """Writes the student to a folder, unless it is there, and returns its name."""
    if folder.is_dir():
        return str(folder)
    source = str(MICROWORLD / "b-student")
    tokenizer, parts = retokenize(load_tokenizer(source))
    model: PreTrainedModel = load_causal_lm(source)
    embeddings = model.get_input_embeddings().weight.detach()
    rows = torch.stack([embeddings[own].mean(0) for own in parts])
    model.resize_token_embeddings(len(parts), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(rows)
    model.tie_weights()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    pairs = pretraining_pairs("b", "student", 0)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50, 2 * (1 - step / steps))
        train_step(model, optimizer, encode(tokenizer, list(islice(pairs, batch))), None, 0.0)
    save(model.eval(), tokenizer, folder)
    return str(folder)
