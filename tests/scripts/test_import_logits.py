"""Captures of DistillKit's become logit caches: equal to a native capture, learnt from, or are refused in one line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from datamodules.examples.tokenization import load_tokenizer
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import Rationale, load_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question, load_questions
from scripts import cache_logits, export_rationales, fit, import_logits
from tests.distillkit import EXACT, make_row, write_capture
from tests.scripts.conftest import Bench
from tests.scripts.pipeline import MODELS
from tests.tiny import save_model, write_store

QUESTIONS = "microworld:train:6:0"
TEACHER = str(MODELS / "a-teacher")
K = 8
COMMON = [
    f"--data.questions={QUESTIONS}",
    "--data.prompt=plain",
    "--data.encoding.max_length=512",
    '--data.rationales=["r.parquet"]',
]
OWN = [f"--teacher={TEACHER}", "--dtype=float32", f"--questions={QUESTIONS}", "--prompt=plain"]
IMPORT = ["captured", *OWN, "--rationales=r.parquet", "--output=imported"]


def write_rationale(question: Question, number: int) -> Rationale:
    answer = get_prompt("plain").answer_sentence(question, question.gold or "A")
    text = "It is so" + " and so" * number + f". {answer}"
    own = {"family": "a", "sample": 0, "answer": question.gold, "correct": True, "finish_reason": "stop"}
    return Rationale(question.id, question.task, question.split, "a-teacher", text=text, prompt_id="plain", **own)


@torch.no_grad()
def capture(model: Any, tokenizer: PreTrainedTokenizerBase, text: str, config: dict) -> dict[str, Any]:
    """Returns the row of a text as DistillKit makes it: what vLLM says of all of a prompt's tokens but one."""
    ids = tokenizer(text)["input_ids"]
    log_probs, best = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).topk(config["k"])
    pairs = [list(zip(*row, strict=True)) for row in zip(best.tolist(), log_probs.tolist(), strict=True)]
    return make_row([*ids, tokenizer.pad_token_id], pairs, config)


@pytest.fixture(scope="module")
def captured_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rationales of the microworld's teacher, its logits as Kindred captures them, and as DistillKit does."""
    folder = tmp_path_factory.mktemp("captured")
    questions = load_questions(QUESTIONS)
    rationales = [write_rationale(question, index) for index, question in enumerate(questions)]
    write_store(folder / "r.parquet", rationales, TEACHER)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TEACHER).eval(), load_tokenizer(TEACHER)
    export = [str(folder / "r.parquet"), f"--questions={QUESTIONS}", "--prompt=plain", f"--texts_for={TEACHER}"]
    export_rationales.main([*export, f"--output={folder / 'texts.jsonl'}"])
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    config = {"d": len(tokenizer) + 1, "k": K, "exact_k": K, **EXACT}
    write_capture(folder / "captured", [capture(model, tokenizer, text, config) for text in texts], config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        settings = [f"--model.top_k={K}", "--model.values=float16", "--trainer.enable_progress_bar=false"]
        cache_logits.main([*COMMON, f"--model.teacher={TEACHER}", *settings, "--output=native"])
    return folder


@pytest.fixture
def captured(
    captured_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Bench:
    folder = shutil.copytree(captured_files, tmp_path / "files")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return Bench(folder, capsys)


def check_equal(found: LogitCache, native: LogitCache, rename: tuple[str, str] = ("", "")) -> None:
    """Holds every row against the native capture's, within float16's rounding of both."""
    assert found.verify() is None and len(found) == len(native) == 6
    for identifier, theirs in native.read_all():
        ours = found.read_foreign([identifier.replace(*rename)])
        assert (ours["token_ids"] == theirs["token_ids"]).all()
        order, wanted = (np.argsort(rows["support"], axis=1) for rows in (ours, theirs))
        for name in ("support", "log_probs"):
            own, other = (np.take_along_axis(rows[name], n, 1) for rows, n in ((ours, order), (theirs, wanted)))
            assert own == pytest.approx(other, rel=2e-3, abs=2e-3), name
        assert np.exp(ours["log_tails"]) == pytest.approx(np.exp(theirs["log_tails"][:, :1]), rel=2e-2, abs=1e-5)
        inside = (ours["support"] == ours["token_ids"][:, None]).any(1)
        own, other = ours["label_log_prob"], theirs["label_log_prob"]
        assert own[inside] == pytest.approx(other[inside], rel=2e-3, abs=2e-3)
        assert np.isneginf(own[~inside]).all() and np.isfinite(other[~inside]).all()


def test_an_imported_cache_is_the_native_one_and_a_student_learns_from_it(captured: Bench) -> None:
    said = captured.run_main(import_logits.main, IMPORT)
    found, native = LogitCache(Path("imported")), LogitCache(Path("native"))
    check_equal(found, native)
    assert f"6 of 6 rationales, {native.num_rows} completion tokens" in said and "6 of 6 captured texts" in said
    outside = sum(int((rows["support"] != rows["token_ids"][:, None]).all(1).sum()) for _, rows in native.read_all())
    assert outside and f"{outside} tokens are not among the captured ones" in said
    for name in ("teacher", "revision", "tokenizer_fingerprint", "prompt_id", "vocabulary", "dtype"):
        assert getattr(found.description, name) == getattr(native.description, name)
    assert found.description.temperatures == (1.0,) and found.manifest["creation"]["config_hash"]
    assert "complete already" in captured.run_main(import_logits.main, IMPORT)
    report = captured.run_main(cache_logits.main, ["inspect", "imported", "--png=imported.png"])
    assert re.search(rf"tokens of unknown probability +\| {outside} ", report)
    assert "inf" not in report and "nan" not in report and Path("imported.png").is_file()
    *_, command = said.splitlines()
    assert "--data.supervision=rationale+logits" in command and "--data.prompt=plain" in command
    losses = {}
    for logits in ("imported", "native"):
        settings = [f"--model.student={MODELS}/a-student", "--model.loss.kl_weight=0.5", f'--data.logits=["{logits}"]']
        training = ["--trainer.max_steps=1", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
        more = ["--data.supervision=rationale+logits", "--run.group=g", f"--run.id={logits}", *training]
        losses[logits] = captured.run_main(fit.main, [*COMMON, *settings, *more]).split("loss: ")[1].split(" (")[0]
    assert losses["imported"].startswith("train ")
    assert float(losses["imported"].split()[1]) == pytest.approx(float(losses["native"].split()[1]), rel=1e-3)


def test_captured_texts_give_the_rationales_too(captured: Bench) -> None:
    args = ["captured", *OWN, "--write_rationales=w.parquet", "--writer=someone", "--output=imported"]
    said = captured.run_main(import_logits.main, args)
    assert "w.parquet: 6 rationales by someone, 6 right" in said
    known = {question.id: question for question in load_questions(QUESTIONS)}
    found, wanted = (load_rationales([path], known) for path in ("w.parquet", "r.parquet"))
    assert [(own.question_id, own.text, own.answer) for own in found] == [
        (own.question_id, own.text, own.answer) for own in wanted
    ]
    check_equal(LogitCache(Path("imported")), LogitCache(Path("native")), ("/a-teacher/", "/someone/"))
    assert "--data.controls.logits_teacher=a-teacher" in said


def edit(change: Callable[[list[dict]], object]) -> None:
    """Changes the capture's rows in place."""
    rows = pq.read_table("captured/data_0.parquet").to_pylist()
    change(rows)
    write_capture(Path("captured"), rows, yaml.safe_load(Path("captured/compression_config.yaml").read_text()))


def test_packed_texts_are_parted_and_what_has_no_row_is_said(captured: Bench) -> None:
    def pack(rows: list[dict]) -> None:
        # As `distillkit-pack-logits` does: without the padding, which has no distribution; the last text is cut.
        packed: dict[str, list] = {name: [] for name in [*rows[0], "attention_mask"]}
        for index, row in enumerate(rows, start=1):
            size = len(row["compressed_logprobs"]) - 9 * (index == len(rows))
            for name, values in row.items():
                packed[name] += values[:size]
            packed["attention_mask"] += [index] * size
        rows[:] = [packed]

    edit(pack)
    said = captured.run_main(import_logits.main, IMPORT)
    assert "5 of 6 rationales" in said and "5 of 6 captured texts" in said and "1 rationales have no row" in said
    assert len(LogitCache(Path("imported"))) == 5


def drop_column(name: str) -> None:
    table = pq.read_table("captured/data_0.parquet").drop_columns([name])
    pq.write_table(table, "captured/data_0.parquet")


def change_config(**settings: Any) -> None:
    path = Path("captured/compression_config.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


BROKEN = {
    "torn": (lambda: edit(lambda rows: rows[2]["input_ids"].append(5)), "row 2: torn: "),
    "torn ids": (lambda: edit(lambda rows: rows[2]["bytepacked_indices"].pop()), "row 2: torn: "),
    "torn bytes": (
        lambda: edit(lambda rows: rows[1]["compressed_logprobs"][0].pop()),
        "compressed_logprobs has 31 bytes at a place, not 32",
    ),
    "other ids": (lambda: edit(lambda rows: rows[0]["input_ids"].__setitem__(0, 60_000)), "another tokenizer"),
    "other size": (lambda: change_config(d=100), "another tokenizer"),
    "other k": (lambda: change_config(k=7, exact_k=7), "has 32 bytes at a place, not 28"),
    "other scheme": (lambda: change_config(codebook=2), "unknown setting 'codebook'"),
    "other bytes": (lambda: change_config(exact_dtype="bfloat16", k=16, exact_k=16), "compression config"),
    "no config": (lambda: Path("captured/compression_config.yaml").unlink(), "compression config"),
    "legacy": (lambda: drop_column("compressed_logprobs"), "no column compressed_logprobs"),
    "no parquet": (lambda: Path("captured/data_0.parquet").write_bytes(b"PAR1"), "cannot be read as parquet"),
    "nothing": (lambda: edit(lambda rows: rows.insert(0, {name: [] for name in rows[0]})), "row 0: torn: 0 tokens"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_capture_of_the_teacher_is_refused_in_one_line(captured: Bench, name: str) -> None:
    spoil, expected = BROKEN[name]
    spoil()
    assert expected in captured.refuse_main(import_logits.main, IMPORT)


def test_what_matches_no_rationale_is_refused_with_where_it_parts(captured: Bench) -> None:
    other = [arg.replace("plain", "instruction") for arg in IMPORT]
    line = captured.refuse_main(import_logits.main, other)
    assert "none of 6 captured texts begins with" in line and "goes on" in line
    args = ["captured", *OWN, "--write_rationales=w.parquet", "--writer=someone", "--output=imported"]
    line = captured.refuse_main(import_logits.main, [arg.replace("plain", "cot") for arg in args])
    assert "holds no rationale of" in line and "6 of no question" in line
    save_model(captured.folder / "other", corpus=("iron", "glass"))
    assert "another tokenizer" in captured.refuse_main(import_logits.main, [*IMPORT, "--teacher=other"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--writer=x"], "belong together"),
        (["--dtype=int8"], "invalid choice"),
        (["--output=captured"], "is no logit cache"),
        (["--template_options={"], "--template_options"),
        (['--template_options={"enable_thinking": false}'], "has no chat template"),
        (["--compression=nowhere.yaml"], "nowhere.yaml"),
        (["--prompt=plain_with_gold"], "only a teacher may see"),
    ],
)
def test_a_wrong_command_line_is_refused(captured: Bench, more: list[str], expected: str) -> None:
    assert expected in captured.refuse_main(import_logits.main, [*IMPORT, *more])
