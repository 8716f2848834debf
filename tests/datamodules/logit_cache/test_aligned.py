"""Tests of logits across tokenizers: what a student reads of a teacher's cache of another, and what is refused."""

import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from datamodules.batches.teacher_rows import collate_targets
from datamodules.distillation import DistillationDataModule
from datamodules.examples.alignment import CLASSES, STRICT
from datamodules.logit_cache.aligned import AlignedCache, AlignmentSettings
from datamodules.logit_cache.mixture import mix_rows
from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.text.token_bytes import END, VocabularyBytes, read_vocabulary
from tests.tiny import (
    build,
    build_llama,
    build_tokenizer,
    capture,
    make_questions,
    make_rationale,
    save_model,
    write_questions,
    write_store,
)

QUESTIONS = make_questions(10)
OTHER = ("iron", "glass", "so and so it is")
KINDS = {
    "top_k": {"top_k": 16},
    "adaptive": {"kind": "adaptive", "top_k": 64, "mass": 0.95},
    "sampled": {"kind": "sampled", "top_k": None, "draws": 20, "temperatures": None},
    "hybrid": {"kind": "hybrid", "top_k": 4, "draws": 8, "temperatures": None},
    "hidden": {"kind": "hidden", "top_k": None, "temperatures": None},
    "labels": {"kind": "labels", "top_k": None, "temperatures": None},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher of its tokenizer and one of another, and caches of the latter, a rationale a question."""
    folder = tmp_path_factory.mktemp("families")
    write_questions(folder / "colours_train.jsonl", QUESTIONS)
    save_model(folder / "student", seed=2)
    for name, corpus in (("ada", None), ("eve", OTHER)):
        model = save_model(folder / name, seed=1, **({} if corpus is None else {"corpus": corpus}))
        write_store(folder / f"{name}.parquet", [make_rationale(item, name) for item in QUESTIONS], model)
    for kind, options in KINDS.items():
        capture_of(folder, "eve", kind, **options)
    capture_of(folder, "ada", "top_k", **KINDS["top_k"])
    return folder


def capture_of(folder: Path, teacher: str, name: str, **options) -> str:
    texts = [str(folder / f"{teacher}.parquet")]
    questions = str(folder / "colours_train.jsonl")
    return capture(folder / f"{teacher}-{name}", str(folder / teacher), questions, texts, **options)


def make_data(
    folder: Path, settings: AlignmentSettings, caches: tuple[str, ...] = ("eve-top_k",), **options
) -> DistillationDataModule:
    data = build(
        DistillationDataModule,
        str(folder / "student"),
        str(folder / "colours_train.jsonl"),
        alignment=settings,
        **{
            "rationales": [str(folder / f"{name.partition('-')[0]}.parquet") for name in caches],
            "logits": [str(folder / name) for name in caches],
            "prompt": "plain",
            "supervision": "rationale+logits",
            "cache_dir": str(folder / "tokenized"),
            **options,
        },
    )
    data.setup("fit")
    return data


@pytest.mark.parametrize("alignment", ["strict", "bytes"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "labels"])
def test_rows_are_the_students(folder: Path, kind: str, alignment: str) -> None:
    data = make_data(folder, AlignmentSettings(kind=alignment), (f"eve-{kind}",))
    [cache] = data.caches
    assert isinstance(cache, AlignedCache)
    examples = list(data.examples[:5])
    planes = collate_targets(examples, data.cache_of_example)
    classes = np.concatenate([cache.alignments.find(example.id).classes for example in examples])
    has_target = planes["has_target"].numpy()
    num_rows = sum(len(example.token_ids) - example.num_prompt_tokens for example in examples)
    assert len(has_target) == num_rows == len(classes) and not has_target.all()
    assert {len(plane) for plane in planes.values()} == {num_rows}
    if alignment == "strict":
        # Where a support's tokens are all foreign, there is nothing to teach either.
        assert not has_target[classes != STRICT].any() and has_target[classes == STRICT].mean() > 0.9
    else:
        assert (has_target > (classes == STRICT)).any()
    if "log_tails" in planes:
        mass = planes["log_probs"].exp().sum(1) + planes["log_tails"].exp()
        np.testing.assert_allclose(mass.numpy()[has_target], 1, atol=2e-6)
        assert cache.description.temperatures == ((1.0, 2.0) if alignment == "strict" else (1.0,))
    if "support" in planes:
        assert planes["support"].max() < len(data.tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_need_the_labels_alone(folder: Path, kind: str) -> None:
    data = make_data(folder, AlignmentSettings(kind="chunks"), (f"eve-{kind}",))
    examples = list(data.examples[:5])
    planes = collate_targets(examples, data.cache_of_example)
    assert set(planes) == {"chunks", "chunk_log_probs"}
    # All of a completion is in some chunk.
    whole = sum(LogitCache(folder / f"eve-{kind}").read_foreign([e.id])["label_log_prob"].sum() for e in examples)
    assert planes["chunk_log_probs"].sum().item() == pytest.approx(whole, rel=1e-3)
    assert planes["chunks"].max() < len(planes["chunk_log_probs"])


def test_teachers_of_several_families_are_mixed_on_one_text(folder: Path, tmp_path: Path) -> None:
    """A row of which one teacher says nothing is the other's."""
    questions, texts = str(folder / "colours_train.jsonl"), [str(folder / "eve.parquet")]
    own = capture(tmp_path / "ada-of-eve", str(folder / "ada"), questions, texts, **KINDS["top_k"])
    settings = AlignmentSettings(kind="bytes", spans="skip", whitespace="keep")
    paths = {"rationales": texts, "logits": [str(folder / "eve-top_k"), own]}
    data = make_data(folder, settings, logit_weights={"eve": 3.0, "ada": 1.0}, **paths)
    # Each of the teachers counts.
    assert sum(data.coverage.values()) == pytest.approx(1) and data.coverage["strict"] > 0.5
    num_alone = 0
    for example in data.examples:
        mixed = collate_targets([example], data.cache_of_example)
        parts = [reader.read(example) for reader in data.cache_of_example[example.id].readers]
        labels = example.token_ids[example.num_prompt_tokens :]
        expected = mix_rows(parts, np.array([0.75, 0.25]), (1.0, 2.0), labels)
        for name, plane in expected.items():
            np.testing.assert_array_equal(mixed[name], plane)
        assert mixed["has_target"].all() and parts[1]["has_target"].all()
        mass = mixed["log_probs"].exp().sum(1) + mixed["log_tails"].exp()
        np.testing.assert_allclose(mass, 1, atol=1e-5)
        for row in np.flatnonzero(~parts[0]["has_target"]):
            support = parts[1]["support"][row]
            np.testing.assert_array_equal(np.sort(support), np.sort(mixed["support"][row][mixed["support"][row] >= 0]))
            num_alone += 1
    assert num_alone > 0
    with pytest.raises(ValueError, match=r"chunks has no distributions that data\.controls\.logit_weights could mix"):
        make_data(folder, AlignmentSettings(kind="chunks"), logit_weights={"eve": 3.0, "ada": 1.0}, **paths)


def test_caches_of_several_families_share_a_batch(folder: Path) -> None:
    """One of the student's own tokenizer is converted into its very distributions."""
    for alignment in (
        AlignmentSettings(kind="bytes", spans="skip", whitespace="keep"),
        AlignmentSettings(kind="chunks"),
    ):
        data = make_data(folder, alignment, ("eve-top_k", "ada-top_k"))
        mixed = [data.examples[number] for number in (3, 0, 12, 7, 15)]
        assert len({id(data.cache_of_example[example.id]) for example in mixed}) == 2
        together = collate_targets(mixed, data.cache_of_example)
        start = 0
        for example in mixed:
            alone = collate_targets([example], data.cache_of_example)
            count = len(example.token_ids) - example.num_prompt_tokens
            for name in set(alone) - {"chunks", "chunk_log_probs"}:
                part = together[name][start : start + count]
                part = part[:, : alone[name].shape[1]] if part.ndim > 1 else part
                np.testing.assert_array_equal(part, alone[name])
            if "chunks" in alone:
                chunks = together["chunks"][start : start + count]
                found = together["chunk_log_probs"][chunks[chunks >= 0]]
                own = alone["chunk_log_probs"][alone["chunks"][alone["chunks"] >= 0]]
                np.testing.assert_array_equal(found, own)
            start += count
    own = make_data(folder, AlignmentSettings(), ("ada-top_k",))
    example = own.examples[4]
    direct = own.cache_of_example[example.id].read(example)
    data = make_data(folder, AlignmentSettings(kind="strict"), ("eve-top_k", "ada-top_k"))
    converted = data.cache_of_example[example.id].read(example)
    np.testing.assert_array_equal(converted["support"], direct["support"])
    for index, temperature in enumerate((1.0, 2.0)):
        log_p = direct["log_probs"] / np.float32(temperature) - direct["log_normalizers"][:, index, None]
        np.testing.assert_array_equal(converted["log_probs"][..., index], log_p)
    np.testing.assert_array_equal(converted["log_tails"], direct["log_tails"])


def test_coverage_is_of_all_rows(folder: Path) -> None:
    data = make_data(folder, AlignmentSettings(kind="strict"))
    assert list(data.coverage) == list(CLASSES) and sum(data.coverage.values()) == pytest.approx(1)
    assert 0.5 < data.coverage["strict"] < 1 and data.coverage["none"] < 0.1
    both = make_data(folder, AlignmentSettings(kind="strict"), ("eve-top_k", "ada-top_k"))
    assert data.coverage["strict"] < both.coverage["strict"] < 1
    assert make_data(folder, AlignmentSettings(), ("ada-top_k",)).coverage == {}


def test_alignments_are_computed_once_for_a_pair(folder: Path, tmp_path: Path) -> None:
    cache_dir = str(tmp_path / "tokenized")
    first = make_data(folder, AlignmentSettings(kind="strict"), cache_dir=cache_dir)
    [path] = tmp_path.glob("tokenized/*/alignments.arrow")
    before = path.stat().st_mtime_ns
    second = make_data(folder, AlignmentSettings(kind="bytes"), cache_dir=cache_dir, correct_only=False)
    assert path.stat().st_mtime_ns == before and len([*tmp_path.glob("tokenized/*/alignments.arrow")]) == 1
    for left, right in zip(first.caches, second.caches, strict=True):
        for example in first.examples:
            for name, plane in vars(left.alignments.find(example.id)).items():
                np.testing.assert_array_equal(plane, vars(right.alignments.find(example.id))[name])
    # Another cache of the same texts has rows of its own.
    make_data(folder, AlignmentSettings(kind="strict"), ("eve-hidden",), cache_dir=cache_dir)
    assert len([*tmp_path.glob("tokenized/*/alignments.arrow")]) == 2
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    with pytest.raises(ValueError, match=r"alignments\.arrow: the alignments are damaged \(it is not the file"):
        make_data(folder, AlignmentSettings(kind="strict"), cache_dir=cache_dir)


@pytest.mark.parametrize("alignment", ["strict", "bytes", "chunks"])
def test_a_worker_reads_what_the_process_reads(folder: Path, alignment: str) -> None:
    data = make_data(folder, AlignmentSettings(kind=alignment))
    there = pickle.loads(pickle.dumps(data.caches[0]))
    for name, plane in data.caches[0].read(*data.examples[:3]).items():
        np.testing.assert_array_equal(there.read(*data.examples[:3])[name], plane)


TURNS = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)


def test_each_side_has_its_own_template_and_end_of_turn(folder: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(OTHER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    tokenizer.chat_template = TURNS
    build_llama(len(tokenizer), seed=4).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    # Somebody else wrote the texts.
    store, whole = str(folder / "ada.parquet"), len(tokenizer)
    questions = str(folder / "colours_train.jsonl")
    capture(tmp_path / "cache", str(tmp_path / "chat"), questions, [store], top_k=whole, values="float16")
    options = {"rationales": [store], "logits": [str(tmp_path / "cache")], "logits_teacher": "chat"}
    data = make_data(folder, AlignmentSettings(kind="strict"), **options)
    [cache] = data.caches
    end, own_end = tokenizer.convert_tokens_to_ids("<end>"), data.tokenizer.eos_token_id
    for example in data.examples:
        teacher = LogitCache(tmp_path / "cache").read_foreign([example.id])
        assert teacher["token_ids"][-1] == end and example.token_ids[-1] == own_end != end
        assert cache.alignments.find(example.id).classes[-1] == STRICT
        # What the teacher gives any of its ends is what the student's end should have.
        ends = np.isin(teacher["support"][-1], [end, tokenizer.eos_token_id])
        wanted = np.exp(teacher["log_probs"][-1][ends].astype(np.float64)).sum()
        rows = cache.read(example)
        place = rows["support"][-1] == own_end
        assert np.exp(rows["log_probs"][-1, place, 0]).sum() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "caches", "message"),
    [
        (
            "refuse",
            ("eve-top_k",),
            r"do not share a tokenizer; a training can use its logits with data\.alignment\.kind$",
        ),
        (
            "strict",
            ("ada-top_k",),
            r"alignment\.kind strict would be ignored: .*ada-top_k and student .* share a token",
        ),
        ("bytes", ("ada-top_k",), r"data\.alignment\.kind bytes would be ignored"),
        (
            "strict",
            ("eve-labels",),
            r"eve-labels: kind labels has no distributions, which data\.alignment\.kind strict",
        ),
        ("bytes", ("eve-labels",), r"set it to chunks, or capture another kind"),
        ("refuse", ("eve-labels",), r"eve-labels: kind labels teaches with data\.alignment\.kind chunks only"),
    ],
)
def test_what_would_not_be_aligned_is_refused(folder: Path, kind, caches, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_data(folder, AlignmentSettings(kind=kind), caches)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"spans": "skip"}, "spans"),
        ({"kind": "strict", "spans": "chain"}, "spans"),
        ({"kind": "chunks", "whitespace": "keep"}, "whitespace"),
        ({"max_unaligned": 0.5}, "max_unaligned"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings: dict, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"data\.alignment\.{name} is given, but alignment \w+ ignores it; leave it out"
    ):
        AlignmentSettings(**settings)


def test_an_alignment_without_logits_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.alignment is about logits; supervision rationale has none"):
        make_data(folder, AlignmentSettings(kind="strict"), supervision="rationale", logits=[])


def test_a_text_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    changed = [make_rationale(item, "eve") for item in QUESTIONS]
    changed[3] = replace(changed[3], text=changed[3].text.replace("It is", "It was"))
    path = write_store(tmp_path / "eve.parquet", changed, str(folder / "eve"))
    with pytest.raises(ValueError, match="eve-top_k: the text of 'q3/eve/0' was changed after its logits were cached"):
        make_data(folder, AlignmentSettings(kind="strict"), rationales=[path])


def test_a_teacher_without_a_known_end_of_turn_is_refused(folder: Path, tmp_path: Path) -> None:
    source = LogitCache(folder / "eve-labels")
    vocabulary = source.read_vocabulary()
    endless = VocabularyBytes(vocabulary.offsets, vocabulary.data, vocabulary.flags & ~np.uint8(END))
    data = make_data(folder, AlignmentSettings(kind="chunks"), ("eve-labels",))
    write_again(source, data, tmp_path / "eve-endless", endless)
    with pytest.raises(ValueError, match="eve-endless: does not know which token ends its teacher's turn"):
        make_data(folder, AlignmentSettings(kind="chunks"), ("eve-labels",), logits=[str(tmp_path / "eve-endless")])


def write_again(source: LogitCache, data: DistillationDataModule, folder: Path, vocabulary: VocabularyBytes) -> None:
    """Writes a cache's rows with another account of what the tokens are."""
    writer = LogitCacheWriter(folder, source.description)
    writer.open()
    writer.add([(example, source.read_foreign([example.id])) for example in data.examples])
    writer.flush()
    writer.finish(vocabulary, {})
    writer.close()


def test_a_tokenizer_that_changes_texts_has_no_targets_there(folder: Path, tmp_path: Path) -> None:
    """A teacher that writes lower case alone spells none of the completions."""
    tokenizer = build_tokenizer(OTHER)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    build_llama(len(tokenizer), seed=4).save_pretrained(tmp_path / "low")
    tokenizer.save_pretrained(tmp_path / "low")
    items = [make_rationale(item, "low") for item in QUESTIONS]
    items[0] = replace(items[0], text=items[0].text.lower().replace("the answer is a)", "answer: a)"))
    store = write_store(tmp_path / "low.parquet", items, str(tmp_path / "low"))
    capture(tmp_path / "cache", str(tmp_path / "low"), str(folder / "colours_train.jsonl"), [store], top_k=8)
    options = {"rationales": [store], "logits": [str(tmp_path / "cache")]}
    message = (
        r"do not spell \d+ of 10 completions, the first is 'q\d/low/0': more than data\.alignment\.max_unaligned 0\.01"
    )
    with pytest.raises(ValueError, match=message):
        make_data(folder, AlignmentSettings(kind="strict"), **options)
    with pytest.warns(UserWarning, match=r"do not spell \d+ of 10 completions, .*; they have no target"):
        data = make_data(folder, AlignmentSettings(kind="strict", max_unaligned=1.0), **options)
    planes = collate_targets(list(data.examples), data.cache_of_example)
    starts = np.cumsum([0, *(len(example.token_ids) - example.num_prompt_tokens for example in data.examples)])
    unaligned = set(data.caches[0].alignments.list_unaligned(data.examples.column("id")))
    assert unaligned
    for example, start, stop in zip(data.examples, starts, starts[1:], strict=False):
        assert planes["has_target"][start:stop].any() == (example.id not in unaligned)


def test_a_teacher_whose_tokens_have_no_known_bytes_serves_its_own_tokenizer(folder: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(OTHER)
    tokenizer.backend_tokenizer.decoder = None
    build_llama(len(tokenizer), seed=4).save_pretrained(tmp_path / "eve")
    tokenizer.save_pretrained(tmp_path / "eve")
    with pytest.raises(ValueError, match="decoder"):
        read_vocabulary(tokenizer, [1])
    store = write_store(
        tmp_path / "eve.parquet", [make_rationale(item, "eve") for item in QUESTIONS], str(tmp_path / "eve")
    )
    capture(tmp_path / "cache", str(tmp_path / "eve"), str(folder / "colours_train.jsonl"), [store])
    cache = LogitCache(tmp_path / "cache")
    cache.verify()
    assert json.loads((tmp_path / "cache" / "manifest.json").read_text())["token_bytes"] is None
    options = {"rationales": [store], "logits": [str(tmp_path / "cache")]}
    with pytest.raises(
        ValueError, match=r"cache: the bytes of its teacher's tokens are unknown; set data\.alignment\.kind"
    ):
        make_data(folder, AlignmentSettings(kind="strict"), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = build(
            DistillationDataModule,
            str(tmp_path / "eve"),
            str(folder / "colours_train.jsonl"),
            supervision="rationale+logits",
            prompt="plain",
            cache_dir=str(tmp_path / "tokenized"),
            **options,
        )
        same.setup("fit")
    assert len(same.cache_of_example) == 10
