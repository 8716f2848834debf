"""Tests of the logit cache: what is written is read, by any process, and nothing foreign is accepted."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import AddedToken

from datamodules.logit_cache.codec import decode_rows, encode_rows
from datamodules.logit_cache.format import CacheDescription
from datamodules.logit_cache.reader import MISSING_EXAMPLES, LogitCache
from datamodules.logit_cache.writer import LogitCacheWriter, refuse_other_folder
from tests.logit_rows import ADDED, HEAD, TOKENIZER, VOCABULARY, describe, make_example, make_rows, write_cache
from tests.tiny import build_tokenizer

EXAMPLES = [make_example(number) for number in range(20)]
KINDS = tuple(ADDED)


def check(folder: Path, examples: list = EXAMPLES, tokenizer=TOKENIZER, prompt_id: str = "cot-1") -> None:
    LogitCache(folder).check("owner/student", tokenizer, prompt_id, examples)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", EXAMPLES)
    return tmp_path / "cache"


def assert_rows_are(rows: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(rows) == set(expected)
    for name, plane in expected.items():
        assert rows[name].dtype == plane.dtype
        np.testing.assert_array_equal(rows[name], plane)


def assert_holds_all(folder: Path, made: CacheDescription, examples: list = EXAMPLES) -> None:
    cache = LogitCache(folder)
    assert cache.description == made
    assert set(cache) == {example.id for example in examples} and len(cache) == len(examples)
    assert cache.num_rows == sum(len(example.token_ids) - 2 for example in examples)
    for example in reversed(examples):
        assert_rows_are(cache.read(example), decode_rows(made, encode_rows(made, make_rows(made, example))))
    assert [identifier for identifier, _ in cache.read_all()] == [*cache]
    cache.verify()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    made = write_cache(tmp_path / "cache", EXAMPLES, describe(kind))
    assert_holds_all(tmp_path / "cache", made)
    assert len(list((tmp_path / "cache").glob("shard-*"))) > 3
    assert "q99/owner/teacher/0" not in LogitCache(tmp_path / "cache")
    check(tmp_path / "cache")
    assert not [path.name for path in (tmp_path / "cache").glob(".*")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 100_000])
def test_a_shard_is_a_safetensors_file_of_the_documented_planes(tmp_path: Path, kind: str, vocabulary: int) -> None:
    made = describe(kind, vocabulary)
    writer = LogitCacheWriter(tmp_path / "cache", made)
    writer.add([(example, make_rows(made, example)) for example in EXAMPLES])
    writer.flush()
    [path] = (tmp_path / "cache").iterdir()
    high = {"tokens_high"} if vocabulary > 65_536 else set()
    planes = {"tokens_low", "label_log_prob", "index.examples", "index.text_hash", "index.rows", "index.checksum"}
    planes |= {"index.check"} | high
    if kind in ("top_k", "adaptive", "hybrid"):
        planes |= {"support_low", "values", "log_tail", "log_normalizers"} | ({"support_high"} if high else set())
    if kind == "adaptive":
        planes |= {"support_size", "index.entries"}
    if kind in ("sampled", "hybrid"):
        planes |= {"drawn_size", "drawn_low", "drawn_counts", "index.drawn"} | ({"drawn_high"} if high else set())
    if kind == "hidden":
        planes |= {"hidden"}
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == planes
        tokens = file.get_tensor("tokens_low").astype(int)
        tokens += file.get_tensor("tokens_high").astype(int) << 16 if high else 0
        np.testing.assert_array_equal(tokens, np.concatenate([example.token_ids[2:] for example in EXAMPLES]))
        assert json.loads(file.get_tensor("index.examples").tobytes()) == [example.id for example in EXAMPLES]


@pytest.mark.parametrize("kind", KINDS)
def test_examples_that_are_read_together_are_those_that_are_read_alone(tmp_path: Path, kind: str) -> None:
    write_cache(tmp_path / "cache", EXAMPLES, describe(kind))
    cache = LogitCache(tmp_path / "cache")
    chosen = [EXAMPLES[number] for number in (7, 3, 19, 3, 0)]
    together, start = cache.read(*chosen), 0
    for example in chosen:
        for name, plane in cache.read(example).items():
            part = together[name][start : start + len(plane)]
            if plane.ndim == 2 and name != "hidden":
                assert (part[:, plane.shape[1] :] == {"support": -1, "log_probs": -np.inf}.get(name, 0)).all()
                part = part[:, : plane.shape[1]]
            np.testing.assert_array_equal(part, plane)
        start += len(example.token_ids) - 2
    assert start == len(together["token_ids"])


def test_the_head_of_hidden_states_is_kept(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", EXAMPLES, describe("hidden"))
    cache = LogitCache(tmp_path / "cache")
    assert set(cache.read_head()) == {"weight"} and cache.read_head()["weight"].equal(HEAD["weight"])
    assert cache.manifest["head"]["scale"] == 0.5 and cache.manifest["head"]["softcap"] == 30
    head = tmp_path / "cache" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    for use in (cache.read_head, cache.verify):
        with pytest.raises(ValueError, match=r"head\.safetensors: missing, or not the file that manifest\.json lists"):
            use()


def _read(cache: LogitCache, connection) -> None:
    connection.send([cache.read(example)["support"] for example in EXAMPLES])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_process_reads(cache: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    opened = LogitCache(cache)
    expected = [opened.read(example)["support"] for example in EXAMPLES]
    workers = []
    for _ in range(2 if method == "fork" else 1):
        ours, theirs = context.Pipe()
        process = context.Process(target=_read, args=(opened, theirs))
        process.start()
        workers.append((process, ours))
    for process, ours in workers:
        for left, right in zip(ours.recv(), expected, strict=True):
            np.testing.assert_array_equal(left, right)
        process.join()


def test_shards_of_several_processes_are_one_cache(tmp_path: Path) -> None:
    made = describe()
    write_cache(tmp_path / "cache", EXAMPLES[1::2], made, rank=1)
    write_cache(tmp_path / "cache", EXAMPLES, made)
    assert {path.name[:10] for path in (tmp_path / "cache").glob("shard-*")} == {"shard-0000", "shard-0001"}
    assert_holds_all(tmp_path / "cache", made)


def test_later_examples_add_shards_and_leave_the_others(cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.glob("shard-*")}
    more = [*EXAMPLES, *(make_example(number) for number in range(20, 25))]
    made = write_cache(cache, more)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(cache.glob("shard-*"))) > len(before)
    assert_holds_all(cache, made, more)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("teacher", "other"),
        ("revision", "x"),
        ("tokenizer_fingerprint", "x"),
        ("prompt_id", "x"),
        ("vocabulary", 70_000),
        ("sparsity", describe(top_k=4).sparsity),
        ("sparsity", describe(values="float16").sparsity),
        ("temperatures", (1.0,)),
        ("dtype", "bfloat16"),
    ],
)
def test_captures_of_anything_else_do_not_mix(cache: Path, field: str, value: object) -> None:
    writer = LogitCacheWriter(cache, replace(describe(), **{field: value}))
    with pytest.raises(
        ValueError, match=r"shard-0000-00000.* written by another teacher, tokenizer, prompt or setting"
    ):
        writer.find_done()


def test_an_extended_vocabulary_passes_and_a_retrained_tokenizer_does_not(cache: Path) -> None:
    extended = build_tokenizer()
    extended.add_tokens([AddedToken("<extra>"), AddedToken("<more>")])
    check(cache, tokenizer=extended)
    message = r"teacher 'owner/teacher' \(tokenizer \w+\) and student 'owner/student' \(tokenizer \w+\) do not share"
    with pytest.raises(ValueError, match=message):
        check(cache, tokenizer=build_tokenizer(("iron", "glass", "wood")))
    other_end = build_tokenizer()
    other_end.eos_token = "<pad>"
    with pytest.raises(ValueError, match=message):
        check(cache, tokenizer=other_end)


def test_another_prompt_is_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match="captured with prompt cot-1, but the data uses plain-2"):
        check(cache, prompt_id="plain-2")


def test_missing_examples_are_counted_and_listed(cache: Path) -> None:
    extra = [*EXAMPLES, make_example(30), make_example(31)]
    message = (
        r"2 of 22 examples are not cached, the first is 'q30/owner/teacher/0', all are listed in .*cache/\.missing"
    )
    with pytest.raises(ValueError, match=message):
        check(cache, extra)
    assert (cache / MISSING_EXAMPLES).read_text() == "q30/owner/teacher/0\nq31/owner/teacher/0\n"
    check(cache, EXAMPLES[3:5])
    write_cache(cache, extra)
    assert not (cache / MISSING_EXAMPLES).exists()
    check(cache, extra)


def test_a_changed_text_is_refused(cache: Path) -> None:
    changed = [*EXAMPLES[:4], replace(EXAMPLES[4], text_hash="f" * 16)]
    with pytest.raises(ValueError, match="the text of 'q4/owner/teacher/0' was changed after its logits were cached"):
        check(cache, changed)


def test_other_tokens_are_refused_when_read(cache: Path) -> None:
    other = EXAMPLES[5].token_ids.copy()
    other[-1] += 1
    with pytest.raises(ValueError, match="the cached tokens of 'q5/owner/teacher/0' are not those of the completion"):
        LogitCache(cache).read(EXAMPLES[4], replace(EXAMPLES[5], token_ids=other))
    # The prompt's tokens are the text hash's business.
    other = EXAMPLES[5].token_ids.copy()
    other[0] += 1
    LogitCache(cache).read(replace(EXAMPLES[5], token_ids=other))


def test_another_schema_is_refused(cache: Path) -> None:
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(ValueError, match="schema 1, but this version reads 2; capture again"):
        LogitCache(cache)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, cache: Path) -> None:
    refuse_other_folder(cache)
    refuse_other_folder(tmp_path / "nothing")
    (cache / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no logit cache \(it holds notes\.txt\); choose another output"):
        refuse_other_folder(cache)
    with pytest.raises(ValueError, match=r"is no logit cache \(it is no folder\); choose another output"):
        refuse_other_folder(cache / "notes.txt")
