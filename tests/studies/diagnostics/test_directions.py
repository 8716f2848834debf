"""Where a teacher's distributions would move a student: against whole gradients, and rows read one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from datamodules.examples.encoding import find_end_tokens
from datamodules.logit_cache.reader import LogitCache
from datamodules.tasks.prompts import get_prompt
from datamodules.text.token_bytes import read_vocabulary
from studies.design.grid import StudentSpec
from studies.diagnostics.alignment import CacheAligner
from studies.diagnostics.directions import measure_direction
from studies.diagnostics.gradients import GradientSketch, compute_logits
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.texts import Direction
from tests.tiny import capture, make_questions, make_rationale, save_model, write_questions, write_store


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LogitCache]:
    """Three rationales, and a teacher's distributions of all its tokens on them."""
    folder = tmp_path_factory.mktemp("directions")
    teacher, questions = save_model(folder / "teacher", seed=3), make_questions(3)
    source = write_questions(folder / "q.jsonl", questions)
    store = write_store(folder / "r.parquet", [make_rationale(item, "t") for item in questions], teacher)
    return folder, LogitCache(Path(capture(folder / "logits", teacher, source, [store])))


def open_reader(cached: tuple[Path, LogitCache], name: str, **model: object) -> StudentReader:
    folder, cache = cached
    student = save_model(folder / name, **model)
    reader = StudentReader(StudentSpec(student, "f"), get_prompt("plain"), folder, name, "float32", 64)
    texts = reader.prepare([(item, make_rationale(item, "t")) for item in make_questions(3)])
    reader.open_caches({"t": cache}, texts)
    reader.texts = texts  # type: ignore[attr-defined]
    return reader


@pytest.mark.parametrize("model", [{}, {"corpus": ("stranger", "things")}], ids=["own tokenizer", "another's"])
def test_the_cosine_is_that_of_whole_gradients_and_rows_diverge_by_bytes(
    cached: tuple[Path, LogitCache], model: dict[str, object]
) -> None:
    reader, cache = open_reader(cached, f"student{len(model)}", **model), cached[1]
    found = reader.direct(reader.texts)  # type: ignore[attr-defined]
    teacher, student = cache.read_vocabulary(), read_vocabulary(reader.tokenizer, find_end_tokens(reader.tokenizer))
    for text in reader.texts:  # type: ignore[attr-defined]
        ids, rows = text.token_ids, cache.read_foreign([text.rationale.id])
        teacher_ids = cache.read_tokens(text.rationale.id).tolist()
        begins = {len(teacher.join(teacher_ids[:n])): n for n in range(len(teacher_ids))}
        net = reader.model.requires_grad_(True)
        logits_NV = compute_logits(net, reader.prompts[text.question.id], ids)
        divergent, kls = [], []
        for place in range(len(ids)):
            row = begins.get(len(student.join(ids[:place])))
            if row is None:
                continue
            log_p, support = rows["log_probs"][row], rows["support"][row]
            names = [None if n < 0 else "end" if n in teacher.ends else teacher.entries[n] for n in support.tolist()]
            ours = {"end" if n in student.ends else entry: n for n, entry in enumerate(student.entries)}
            first = int(logits_NV[place].argmax())
            divergent.append(ours.get(names[int(log_p.argmax())]) != first)
            is_same = teacher.join([teacher_ids[row]]) == student.join([ids[place]])
            shared = [(float(p), ours[name]) for p, name in zip(log_p, names, strict=True) if name in ours]
            if is_same and shared:
                log_q = logits_NV[place].log_softmax(-1)
                p = torch.tensor([own for own, _ in shared]).exp()
                q = log_q[[number for _, number in shared]].exp()
                p, q = (torch.cat([part, (1 - part.sum())[None].clamp(min=1e-30)]) for part in (p, q))
                kls.append((p * (p.clamp(min=1e-30).log() - q.log())).sum())
        losses = (cross_entropy(logits_NV, torch.tensor(ids)), torch.stack(kls).mean())
        first, second = (
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)])
            for loss in losses
        )
        own = found[text.key]
        assert (own.divergent, own.rows) == (sum(divergent), len(divergent))
        assert own.cosine == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)), abs=2e-3)
        net.requires_grad_(False)
    # Kept: a reader without a model finds the same.
    again = open_reader(cached, f"student{len(model)}", **model)
    assert again.direct(again.texts) == found and "model" not in vars(again)  # type: ignore[attr-defined]


def test_a_text_that_no_token_of_the_teacher_meets_has_no_direction(cached: tuple[Path, LogitCache]) -> None:
    reader = open_reader(cached, "student0")
    cache, vocabulary = cached[1], read_vocabulary(reader.tokenizer, find_end_tokens(reader.tokenizer))
    text = reader.texts[0]  # type: ignore[attr-defined]
    assert CacheAligner(cache, vocabulary).read_common(text.rationale.id, text.token_ids[1:]) is None


def test_equal_losses_have_equal_directions(cached: tuple[Path, LogitCache]) -> None:
    """Of a teacher that is certain of the text, KL is cross-entropy."""
    reader = open_reader(cached, "student0")
    text = reader.texts[0]  # type: ignore[attr-defined]
    vocabulary = read_vocabulary(reader.tokenizer, find_end_tokens(reader.tokenizer))
    rows = CacheAligner(cached[1], vocabulary).read_common(text.rationale.id, text.token_ids)
    assert rows is not None
    shape = rows.target.support_NK.shape
    support = torch.full(shape, -1)
    support[:, 0] = torch.tensor(text.token_ids)[rows.rows]
    log_probs = torch.full((*shape, rows.target.log_probs_NKT.shape[2]), -torch.inf)
    log_probs[:, 0] = 0
    target = rows.target._replace(
        support_NK=support, log_probs_NKT=log_probs, log_tails_NT=torch.full_like(rows.target.log_tails_NT, -torch.inf)
    )
    certain = rows._replace(target=target, best=np.array(text.token_ids))
    sketch = GradientSketch(reader.model, 1, 0)
    found = measure_direction(sketch, reader.model, reader.prompts[text.question.id], text.token_ids, certain)
    sketch.remove()
    assert isinstance(found, Direction) and found.cosine == pytest.approx(1, abs=1e-4)
