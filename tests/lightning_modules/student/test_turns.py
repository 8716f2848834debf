"""Tests of ends of turns and of thinking, from a teacher's completion to an exported student."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from datamodules.annotation import QuestionDataModule
from datamodules.distillation import DistillationDataModule
from datamodules.examples.encoding import decode_completion
from datamodules.examples.tokenization import load_tokenizer
from datamodules.rationales.store import Rationale, load_rationales, write_rationales
from lightning_modules.student.student import DistillationModule
from lightning_modules.teacher.annotator import Annotator
from lightning_modules.teacher.backends import Backend, Completion, Decoding, Request, Source, TransformersBackend
from losses.distillation import DistillationLoss
from tests.lightning_modules.conftest import World
from tests.tiny import TRAINER, build, fit, make_questions, make_rationale

TURN = "<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
GEMMA = "{% for m in messages %}TURN{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\nOPEN{% endif %}"


def add_template(world: World, folder: Path, opens: str = "") -> str:
    """Saves the student as a chat model whose turns end otherwise than its texts, as Gemma's do."""
    shutil.copytree(world.student, folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = GEMMA.replace("TURN", TURN).replace("OPEN", opens)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_student_learns_and_exports_the_end_of_its_templates_turns(world: World, tmp_path: Path) -> None:
    folder = add_template(world, tmp_path / "chat")
    tokenizer = load_tokenizer(folder)
    end, own = tokenizer.convert_tokens_to_ids("<end_of_turn>"), tokenizer.eos_token_id
    data = build(DistillationDataModule, folder, world.questions, rationales=[world.rationales], prompt="cot")
    module = DistillationModule(folder, DistillationLoss(), learning_rate=1e-2)
    fit(module, data)
    assert {int(example.token_ids[-1]) for example in data.train_examples} == {end} != {own}
    module.export(tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert exported.generation_config.eos_token_id == [end, own]


def test_a_teacher_stops_at_its_templates_end_of_turn(world: World, tmp_path: Path) -> None:
    folder = add_template(world, tmp_path / "chat")
    data = build(QuestionDataModule, folder, world.questions)
    free = annotate(data, Annotator(folder, max_new_tokens=12))
    # A token that it writes in the middle becomes its end of turn.
    backend = TransformersBackend()
    backend.load(Source(folder, None, "float32", None), load_tokenizer(folder))
    [posed, *_] = data.posed.values()
    [(_, whole)] = backend.generate([Request("q0", 0, "", tuple(posed.prompt_ids))], Decoding(12, 0.0, (), 0))
    assert (
        whole.token_ids is not None and free["q0"]["text"] == decode_completion(data.tokenizer, whole.token_ids).strip()
    )
    middle = next(
        token for index, token in enumerate(whole.token_ids) if index and token not in whole.token_ids[:index]
    )
    name = backend.tokenizer.convert_ids_to_tokens(middle)
    backend.tokenizer.add_special_tokens({"additional_special_tokens": [name]})
    backend.tokenizer.chat_template = backend.tokenizer.chat_template.replace("<end_of_turn>", name)
    [(_, cut)] = backend.generate([Request("q0", 0, "", tuple(posed.prompt_ids))], Decoding(12, 0.0, (), 0))
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(middle)] and cut.finish_reason == "stop"


class Writer(Backend):
    """A teacher that writes one given text."""

    def __init__(self, text: str, finish_reason: str = "stop"):
        self.text, self.finish_reason = text, finish_reason

    def check(self, source: Source, longest: int, highest_id: int) -> None: ...

    def load(self, source: Source, tokenizer: object) -> None: ...

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[Request, Completion]]:
        for request in requests:
            yield request, Completion(self.text, None, self.finish_reason, 1, 1, "w")


def annotate(data: QuestionDataModule, teacher: Annotator) -> dict[str, dict]:
    if teacher.backend.is_local:
        batches = L.Trainer(**TRAINER).predict(teacher, data)
        return {record["question_id"]: record for records in batches for record in records}
    data.setup("predict")
    teacher.prepare(data)
    return {record["question_id"]: record for record in teacher.annotate(data, data.find_missing())}


@pytest.mark.parametrize(
    ("opens", "text", "finish_reason", "expected"),
    [
        (
            "",
            "<think>Maybe the answer is A.</think> The answer is B.",
            "stop",
            ("Maybe the answer is A.", "The answer is B.", "B"),
        ),
        # A template that opens the thinking itself, as DeepSeek-R1's.
        ("<think>\n", "Maybe the answer is A.\n</think>\n\nB", "stop", ("Maybe the answer is A.", "B", "B")),
        ("<think>\n", "Maybe the answer is A. But", "length", ("Maybe the answer is A. But", "", None)),
        ("", "<think>Maybe the answer is A. But", "length", ("Maybe the answer is A. But", "", None)),
        ("", "The answer is A.", "stop", ("", "The answer is A.", "A")),
    ],
)
def test_what_a_teacher_thinks_is_kept_apart(
    world: World, tmp_path: Path, opens, text, finish_reason, expected
) -> None:
    folder = add_template(world, tmp_path / "chat", opens)
    data = build(QuestionDataModule, folder, world.questions, limit=1)
    record = annotate(data, Annotator(folder, backend=Writer(text, finish_reason)))["q0"]
    assert (record["thinking"], record["text"], record["answer"]) == expected


def test_thinking_in_an_imported_text_is_taken_apart(tmp_path: Path) -> None:
    [question] = make_questions(1)
    whole = make_rationale(question, "t")
    lines = [
        {**vars(whole), "text": f"<think>Or B.</think>\n{whole.text}"},
        {**vars(whole), "sample": 1, "text": "<think>Or B. The answer is A"},
    ]
    for line in lines:
        del line["thinking"]
    path = tmp_path / "r.parquet"

    pq.write_table(pa.Table.from_pylist(lines), path)
    first, second = load_rationales([str(path)], {question.id: question})
    assert (first.thinking, first.text, first.answer) == ("Or B.", whole.text, whole.answer)
    assert (second.thinking, second.text, second.answer, second.correct) == ("Or B. The answer is A", "", None, False)
    assert second.finish_reason == "length"


@pytest.mark.parametrize("thinking", ["keep", "drop"])
def test_thinking_is_learned_or_not_and_each_has_examples_of_its_own(
    world: World, tmp_path: Path, thinking: str
) -> None:
    rationales = [
        Rationale(**{**vars(make_rationale(question, "t")), "thinking": "Or not?"}) for question in make_questions(8)
    ]
    write_rationales(tmp_path / "r.parquet", rationales, {})
    data = build(
        DistillationDataModule,
        world.student,
        world.questions,
        rationales=[str(tmp_path / "r.parquet")],
        prompt="plain",
        thinking=thinking,
    )
    data.setup("fit")
    for example in data.train_examples:
        text = data.tokenizer.decode(example.token_ids[example.num_prompt_tokens :])
        assert text.startswith("<think>\nOr not?\n</think>\n\nIt is so" if thinking == "keep" else "It is so")


def test_thinking_does_not_go_with_controls_of_the_answer(world: World) -> None:
    for options in ({"shuffled": True}, {"answer_position": "first"}):
        with pytest.raises(ValueError, match=r"data\.controls\.thinking keep"):
            build(
                DistillationDataModule,
                world.student,
                world.questions,
                rationales=[world.rationales],
                thinking="keep",
                **options,
            )
