"""Tests of the logit cache: what is written is read, by any process, and nothing foreign is accepted."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import AddedToken

from datamodules.files.atomic import hash_path
from datamodules.logit_cache.codec import decode_rows, encode_rows
from datamodules.logit_cache.format import CacheDescription, list_planes, render_manifest
from datamodules.logit_cache.reader import MISSING_EXAMPLES, LogitCache
from datamodules.logit_cache.shard import write_shard
from datamodules.logit_cache.writer import LogitCacheWriter, refuse_other_folder
from datamodules.text.token_bytes import read_vocabulary
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
    planes |= {"index.completion_hash", "index.check"} | high
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


def test_what_the_ids_mean_is_kept(cache: Path) -> None:
    vocabulary = LogitCache(cache).read_vocabulary()
    own = read_vocabulary(TOKENIZER, [TOKENIZER.eos_token_id])
    assert vocabulary.hash == own.hash and vocabulary.ends == [TOKENIZER.eos_token_id]
    path = cache / "vocabulary.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for use in (LogitCache(cache).read_vocabulary, LogitCache(cache).verify):
        with pytest.raises(ValueError, match=r"vocabulary\.safetensors: missing, or not the file that manifest\.json"):
            use()
    path.unlink()
    assert not LogitCacheWriter(cache, describe()).is_complete()
    write_cache(cache, EXAMPLES)
    LogitCache(cache).verify()


def test_a_teacher_without_a_tokenizer_is_known_by_the_bytes_of_its_tokens(tmp_path: Path) -> None:
    made = describe("labels")
    writer = LogitCacheWriter(tmp_path / "cache", made)
    writer.open()
    writer.add([(example, make_rows(made, example)) for example in EXAMPLES])
    writer.flush()
    writer.finish(read_vocabulary(TOKENIZER, [TOKENIZER.eos_token_id]), {})
    writer.close()
    cache = LogitCache(tmp_path / "cache")
    assert not cache.shares_tokenizer(TOKENIZER)
    cache.require_token_bytes()
    cache.check_completions(EXAMPLES)
    np.testing.assert_array_equal(cache.read_tokens(EXAMPLES[3].id), EXAMPLES[3].token_ids[2:])


def test_completions_are_compared_without_the_prompt(cache: Path) -> None:
    opened = LogitCache(cache)
    opened.check_completions([replace(EXAMPLES[4], text_hash="f" * 16)])
    changed = [*EXAMPLES[:4], replace(EXAMPLES[4], completion_hash="f" * 16)]
    with pytest.raises(ValueError, match="the text of 'q4/owner/teacher/0' was changed after its logits were cached"):
        opened.check_completions(changed)
    with pytest.raises(ValueError, match="1 of 1 examples are not cached, the first is 'q70/owner/teacher/0'"):
        opened.check_completions([make_example(70)])


def test_a_cache_of_the_schema_before_serves_its_own_tokenizer(cache: Path) -> None:
    make_old(cache)
    check(cache)
    opened = LogitCache(cache)
    opened.verify()
    assert_rows_are(
        opened.read(EXAMPLES[2]), decode_rows(describe(), encode_rows(describe(), make_rows(describe(), EXAMPLES[2])))
    )
    with pytest.raises(ValueError, match="captured by an earlier version, without the bytes of its tokens"):
        opened.require_token_bytes()
    writer = LogitCacheWriter(cache, describe())
    assert len(writer.find_done()) == 20 and writer.is_complete()
    with pytest.raises(
        ValueError, match="begun by an earlier version, without the tokens' bytes; choose another output"
    ):
        writer.open()


def make_old(folder: Path) -> None:
    """Makes of a cache what the schema before would have written."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        with safe_open(path, framework="np") as file:
            names = {name: file.get_tensor(name) for name in file.keys()}
            signature = file.metadata()["signature"]
        layout = list_planes(describe())
        index = {
            name: ({1: "U8", 4: "U32", 8: "U64"}[array.itemsize], array)
            for name, array in names.items()
            if name.startswith("index.") and name not in ("index.check", "index.completion_hash")
        }
        write_shard(path, {name: (layout[name].dtype, names[name]) for name in layout}, index, signature)
        entry |= {"bytes": path.stat().st_size, "sha256": hash_path(path)}
    (folder / "vocabulary.safetensors").unlink()
    kept = {name: value for name, value in manifest.items() if name not in ("token_bytes", "checksum")}
    (folder / "manifest.json").write_text(render_manifest({**kept, "schema": 2}))


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
    with pytest.raises(ValueError, match="schema 1, but this version reads 3; capture again"):
        LogitCache(cache)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, cache: Path) -> None:
    refuse_other_folder(cache)
    refuse_other_folder(tmp_path / "nothing")
    (cache / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is no logit cache \(it holds notes\.txt\); choose another output"):
        refuse_other_folder(cache)
    with pytest.raises(ValueError, match=r"is no logit cache \(it is no folder\); choose another output"):
        refuse_other_folder(cache / "notes.txt")
