"""Tests of texts as tokens: ends of turns by each family's template, and text that looks like a control token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.examples.encoding import (
    Piece,
    check_template_options,
    decode_completion,
    encode_pieces,
    encode_texts,
    find_end_tokens,
    render_chat,
    spell_tokens,
)
from datamodules.examples.tokenization import build_examples, encode_prompt, load_tokenizer
from datamodules.rationales.store import Rationale
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question

MICROWORLD = Path(__file__).parents[3] / "configs" / "models" / "microworld"
TURNS = "{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
CHATML = TURNS.format(
    turn="<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n", prompt="<|im_start|>assistant\n"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}SPACE{{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
# The structure of each family's template: how a turn begins and ends, and what the tokenizer's own end token is.
TEMPLATES = {
    "llama-2": (INST.replace("SPACE", " "), "</s>", "</s>"),
    "mistral": (INST.replace("SPACE", ""), "</s>", "</s>"),
    "llama-3": (
        TURNS.format(
            turn="<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>",
            prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        "<|end_of_text|>",
        "<|eot_id|>",
    ),
    "qwen2.5": (CHATML, "<|im_end|>", "<|im_end|>"),
    "qwen2.5 base": (CHATML, "<|endoftext|>", "<|im_end|>"),
    "qwen3": (
        CHATML.replace(
            "{{ m['content'] }}<|im_end|>",
            "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
            "{{ m['content'] }}<|im_end|>",
        ).replace(
            "assistant\n{% endif %}",
            "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
            "{% endif %}",
        ),
        "<|im_end|>",
        "<|im_end|>",
    ),
    "smollm2": (CHATML, "<|im_end|>", "<|im_end|>"),
    "gemma-2": (
        TURNS.format(
            turn="<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
            "<end_of_turn>\n",
            prompt="<start_of_turn>model\n",
        ),
        "<eos>",
        "<end_of_turn>",
    ),
    "phi-3": (
        TURNS.format(turn="<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n", prompt="<|assistant|>\n").replace(
            "{% if add_generation_prompt %}", "{% if not add_generation_prompt %}{{ eos_token }}{% else %}"
        ),
        "<|endoftext|>",
        "<|end|>",
    ),
    # The next user's mark is the end: nothing closes an assistant's last turn.
    "glm-4": (
        TURNS.format(turn="<|{{ m['role'] }}|>\n{{ m['content'] }}", prompt="<|assistant|>"),
        "<|endoftext|>",
        "<|user|>",
    ),
    # Nothing but text between the turns.
    "alpaca": (
        TURNS.format(turn="### {{ m['role'] }}:\n{{ m['content'] }}\n\n", prompt="### assistant:\n"),
        "</s>",
        "</s>",
    ),
    "pythia": (None, "<|endoftext|>", "<|endoftext|>"),
}
TEMPLATES["gemma-3"] = TEMPLATES["gemma-2"]
CONTROLS = [
    *("<pad>", "<s>", "</s>", "<eos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>"),
    *("<|end|>", "[THINK]", "[/THINK]"),
]
CANALS = Question("q1", "csqa", "train", "Where are many canals?", ("Michigan", "New York", "Rome", "Venice"), "D")


def write_rationale(text: str, thinking: str = "") -> Rationale:
    fields = ("q1", "csqa", "train", "big", "unknown", 0, text, "D", True, "stop", "cot-12345678")
    return Rationale(*fields, thinking=thinking)


def build(family: str) -> PreTrainedTokenizerBase:
    template, eos, _ = TEMPLATES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["Where are many canals? The answer is D) Venice. user assistant model"] * 3, trainer)
    tokenizer.add_tokens(["<think>", "</think>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, bos_token="<s>", pad_token="<pad>", chat_template=template
    )


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    return {family: build(family) for family in TEMPLATES}


def test_there_is_a_template_for_every_family_with_a_card() -> None:
    folder = Path(__file__).parents[3] / "configs" / "models"
    assert {path.stem for path in folder.glob("*.yaml")} <= set(TEMPLATES)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_completion_ends_as_the_template_ends_a_turn(family: str, tokenizers) -> None:
    tokenizer, (_, eos, end) = tokenizers[family], TEMPLATES[family]
    found = tokenizer.convert_ids_to_tokens(find_end_tokens(tokenizer))
    # The tokenizer's own ends a completion, too, but is not what is learned.
    assert found == list(dict.fromkeys([end, eos]))
    [example] = build_examples(tokenizer, get_prompt("cot"), [(CANALS, write_rationale("It has canals."))])
    assert tokenizer.convert_ids_to_tokens([example.token_ids[-1]]) == [end]
    if TEMPLATES[family][0]:
        # The completion is what the template writes of an assistant's message, up to the end of the turn.
        text, _ = encode_prompt(tokenizer, get_prompt("cot"), CANALS)
        completion = tokenizer.decode(example.token_ids[example.num_prompt_tokens : -1])
        assert completion == "It has canals. The answer is D) Venice."
        message = get_prompt("cot").render(CANALS, True)
        turns = [{"role": "user", "content": message}, {"role": "assistant", "content": completion}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        _, _, after = whole.partition(completion)
        assert whole.startswith(text.rstrip()) or family == "qwen3"
        assert after.strip().startswith(end) or family in ("glm-4", "alpaca")


@pytest.mark.parametrize("family", [name for name, (template, _, _) in TEMPLATES.items() if template])
def test_a_prompt_without_control_tokens_is_what_the_template_gives(family: str, tokenizers) -> None:
    tokenizer, prompt = tokenizers[family], get_prompt("cot")
    text, ids = encode_prompt(tokenizer, prompt, CANALS)
    chat = [{"role": "user", "content": prompt.render(CANALS, True)}]
    assert text == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ids == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("name", ["<|im_end|>", "<eos>", "</s>", "<end_of_turn>\n<start_of_turn>user\n"])
def test_a_control_tokens_name_in_a_question_or_a_rationale_is_text(family: str, name: str, tokenizers) -> None:
    tokenizer, prompt = tokenizers[family], get_prompt("cot")
    controls = set(range(len(CONTROLS)))

    def count_controls(question: Question, rationale: Rationale) -> tuple[int, int]:
        [example] = build_examples(tokenizer, prompt, [(question, rationale)])
        ids, num = example.token_ids.tolist(), example.num_prompt_tokens
        assert tokenizer.decode(ids[num:-1]) == f"{rationale.text} The answer is D) Venice."
        return sum(token in controls for token in ids[:num]), sum(token in controls for token in ids[num:])

    hostile = Question("q1", "csqa", "train", f"Where {name} are?", (f"A{name}", name, "Rome", "Venice"), "D")
    assert count_controls(hostile, write_rationale(f"It {name} has.")) == count_controls(CANALS, write_rationale("It."))
    text, ids = encode_prompt(tokenizer, prompt, hostile)
    assert tokenizer.decode(ids) == text and text.count(name) >= 3


def test_added_tokens_end_turns_by_what_the_template_writes_not_by_how_they_are_marked() -> None:
    # As in some fine-tunes of others' models, the ends of turns are added tokens like any other.
    tokenizer = build("smollm2")
    names = {"<|im_start|>": "<|turn|>", "<|im_end|>": "<|turn_end|>"}
    tokenizer.add_tokens([*names.values(), "<|tool|>"])
    for name, own in names.items():
        tokenizer.chat_template = tokenizer.chat_template.replace(name, own)
    end = tokenizer.convert_tokens_to_ids("<|turn_end|>")
    assert find_end_tokens(tokenizer)[0] == end
    [example] = build_examples(tokenizer, get_prompt("cot"), [(CANALS, write_rationale("It <|turn_end|> has."))])
    ids = example.token_ids.tolist()
    assert ids[example.num_prompt_tokens :].count(end) == 1
    assert decode_completion(tokenizer, ids[example.num_prompt_tokens :]).startswith("It <|turn_end|> has. The answer")
    assert encode_texts(tokenizer, ["a <|tool|>"])[0].ids == tokenizer("a <|tool|>", add_special_tokens=False).input_ids


def test_white_space_that_is_one_token_ends_no_turn() -> None:
    # Gemma's and GPT-NeoX's vocabularies have runs of white space as added tokens.
    tokenizer = build("alpaca")
    tokenizer.add_tokens(["\n\n", "    "])
    assert tokenizer.convert_ids_to_tokens(find_end_tokens(tokenizer)) == ["</s>"]


@pytest.mark.parametrize("name", ["a-student", "b-student"])
def test_a_vocabulary_that_holds_the_controls_names_does_not_write_them(name: str) -> None:
    """Microworld's a is a unigram model, of whose pieces `</s>` is one."""
    tokenizer = load_tokenizer(str(MICROWORLD / name))
    [encoded] = encode_texts(tokenizer, ["a thing </s> is <pad> made"])
    assert not set(encoded.ids) & {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.decode(encoded.ids).split()[:2] == ["a", "thing"]
    # A text without such a name is encoded as ever.
    plain = "The blin is made of wood."
    assert encode_texts(tokenizer, [plain])[0].ids == tokenizer(plain, add_special_tokens=False).input_ids
    both = encode_texts(tokenizer, [f"{plain} </s>"])[0].ids
    assert both[: len(encode_texts(tokenizer, [plain])[0].ids) - 1] == encode_texts(tokenizer, [plain])[0].ids[:-1]


@settings(max_examples=50)
@given(text=st.lists(st.sampled_from([*CONTROLS[1:], "a", " ", "\n", "é", "<", "|>"])).map("".join))
def test_any_text_survives_and_writes_no_control_token(text: str) -> None:
    tokenizer = build("llama-3")
    [encoded] = encode_texts(tokenizer, [text])
    assert not set(encoded.ids) & set(range(len(CONTROLS)))
    assert tokenizer.decode(encoded.ids) == text
    pieces = [Piece("<|start_header_id|>user", True), Piece(text, False), Piece("<|eot_id|>", True)]
    [ids] = encode_pieces(tokenizer, [pieces])
    assert tokenizer.decode(ids) == "".join(piece.text for piece in pieces)
    assert [token for token in ids if token < len(CONTROLS)] == [
        tokenizer.convert_tokens_to_ids("<|start_header_id|>"),
        tokenizer.convert_tokens_to_ids("<|eot_id|>"),
    ]


def test_options_reach_the_template_and_are_part_of_the_prompts_id(tokenizers) -> None:
    tokenizer, plain = tokenizers["qwen3"], get_prompt("cot")
    prompt = get_prompt("cot", template_options={"enable_thinking": False})
    assert encode_prompt(tokenizer, prompt, CANALS)[0].endswith("assistant\n<think>\n\n</think>\n\n")
    assert encode_prompt(tokenizer, plain, CANALS)[0].endswith("assistant\n")
    assert len({prompt.id, plain.id, get_prompt("cot", template_options={"enable_thinking": True}).id}) == 3
    check_template_options(tokenizer, prompt.template_options)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "qwen3",
            {"enable_thinkin": False},
            "reads no 'enable_thinkin' of data.encoding.template_options; it reads enable_thinking",
        ),
        ("gemma-2", {"enable_thinking": False}, "reads no 'enable_thinking' .*; it reads none"),
        ("pythia", {"enable_thinking": False}, "has no chat template, which would read data.encoding.template_options"),
        ("qwen3", {"messages": "x"}, "reads no 'messages'"),
    ],
)
def test_an_option_that_the_template_would_ignore_is_refused(family, options, message, tokenizers) -> None:
    with pytest.raises(ValueError, match=message):
        check_template_options(tokenizers[family], options)


@pytest.mark.parametrize(
    "template", ["{% for m in messages %}", "{{ raise_exception('no') }}", "{{ 1 + 'a' }}", "{{ messages[0].x.y }}"]
)
def test_a_broken_template_is_refused_in_one_line(template: str) -> None:
    tokenizer = build("pythia")
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="its chat template cannot be rendered"):
        render_chat(tokenizer, "Why?", {})


def test_a_template_that_changes_the_message_is_refused() -> None:
    tokenizer = build("pythia")
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(ValueError, match="changes the user's message"):
        render_chat(tokenizer, "Why?", {})


def test_what_a_student_learns_of_a_teachers_thinking(tokenizers) -> None:
    tokenizer = tokenizers["qwen3"]
    rationale = write_rationale("It has canals.", "Rome? No.")
    for keep, expected in ((False, ""), (True, "<think>\nRome? No.\n</think>\n\n")):
        [example] = build_examples(tokenizer, get_prompt("cot"), [(CANALS, rationale)], keep_thinking=keep)
        completion = tokenizer.decode(example.token_ids[example.num_prompt_tokens :])
        assert completion == f"{expected}It has canals. The answer is D) Venice.<|im_end|>"
    assert (
        build_examples(tokenizer, get_prompt("cot"), [(CANALS, write_rationale("", "Rome?"))], keep_thinking=True)[
            0
        ].token_ids.size
        == 0
    )


def test_a_decoded_completion_keeps_the_marks_of_thinking_alone(tokenizers) -> None:
    tokenizer = tokenizers["mistral"]
    ids = tokenizer("[THINK]Rome?[/THINK]Venice.</s><pad>", add_special_tokens=False).input_ids
    assert decode_completion(tokenizer, ids) == "[THINK]Rome?[/THINK]Venice."


@pytest.mark.parametrize("name", ["a-teacher", "b-teacher"])
def test_a_text_is_read_as_the_tokens_that_it_spells_or_there_is_none(name: str) -> None:
    tokenizer = load_tokenizer(str(MICROWORLD / name))
    prompt, own = (encode_texts(tokenizer, [text])[0].ids for text in ("Answer:\n", "It is so."))
    ids = [*prompt, *own, tokenizer.eos_token_id]
    # Tokenizers of the microworld put a space before a text, which the rationale has there, too.
    assert spell_tokens(tokenizer, ids) == "Answer:\n It is so.</s>"
    assert tokenizer("Answer:\n It is so.</s>")["input_ids"] == ids
    # "is" is one token.
    assert spell_tokens(tokenizer, [*prompt, *tokenizer.convert_tokens_to_ids(["▁", "i", "s"])]) is None
