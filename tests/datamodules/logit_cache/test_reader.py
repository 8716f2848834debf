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
from datamodules.logit_cache.format import list_planes, render_manifest
from datamodules.logit_cache.reader import MISSING_EXAMPLES, LogitCache
from datamodules.logit_cache.shard import write_shard
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.text.token_bytes import read_vocabulary
from tests.datamodules.logit_cache.small_cache import EXAMPLES, KINDS, assert_holds_all, assert_rows_are
from tests.logit_rows import HEAD, TOKENIZER, describe, make_example, make_rows, write_cache
from tests.tiny import build_tokenizer


def check(folder: Path, examples: list = EXAMPLES, tokenizer=TOKENIZER, prompt_id: str = "cot-1") -> None:
    LogitCache(folder).check("owner/student", tokenizer, prompt_id, examples)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    made = write_cache(tmp_path / "cache", EXAMPLES, describe(kind))
    assert_holds_all(tmp_path / "cache", made)
    assert len(list((tmp_path / "cache").glob("shard-*"))) > 3
    assert "q99/owner/teacher/0" not in LogitCache(tmp_path / "cache")
    check(tmp_path / "cache")
    assert not [path.name for path in (tmp_path / "cache").glob(".*")]


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
