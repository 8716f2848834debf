"""Tests of tokenization with small real tokenizers: segments, prompts, fingerprints, lengths."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.examples.tokenization import (
    ANSWER,
    PROMPT,
    RATIONALE,
    Example,
    build_examples,
    encode_completion,
    encode_prompt,
    fingerprint_tokenizer,
    hash_tokenizer,
    load_tokenizer,
    split_completion,
)
from datamodules.files.atomic import hash_text
from datamodules.rationales.store import Rationale
from datamodules.tasks.prompts import Prompt, get_prompt
from datamodules.tasks.questions import Question

CORPUS = [
    "The answer is D) Venice. Let's think step by step.",
    "Question: Where in Southern Europe would you find many canals?",
    "Choices:\nA) Michigan\nB) New York\nC) Amsterdam\nD) Venice",
] * 20
CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CANALS = Question("q1", "csqa", "train", "Where are many canals?", ("Michigan", "New York", "Rome", "Venice"), "D")
MATHS = Question("m1", "gsm8k", "train", "How many?", None, "72")
VENICE = Rationale("q1", "csqa", "train", "big", "llama", 0, "It has canals.", "D", True, "stop", "cot-12345678")


def train_byte_level(vocab_size: int = 400) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, **options) -> str:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", **options).save_pretrained(folder)
    return str(folder)


def save_sentencepiece(folder: Path) -> str:
    """Saves a Llama-like tokenizer: sentencepiece with byte fallback and a begin token."""
    folder.mkdir()
    (folder / "corpus.txt").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **special}))
    return str(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "byte-level": load_tokenizer(save(folder / "plain", train_byte_level())),
        "chat": load_tokenizer(save(folder / "chat", train_byte_level(), chat_template=CHAT_TEMPLATE)),
        "sentencepiece": load_tokenizer(save_sentencepiece(folder / "sentencepiece")),
    }


def build_example(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, question: Question, rationale: Rationale | None
) -> Example:
    [example] = build_examples(tokenizer, prompt, [(question, rationale)])
    return example


KINDS = ["byte-level", "chat", "sentencepiece"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["cot", "instruction", "plain"])
def test_segments_and_texts_of_an_example(
    tokenizers: dict[str, PreTrainedTokenizerBase], kind: str, prompt: str
) -> None:
    tokenizer = tokenizers[kind]
    example = build_example(tokenizer, get_prompt(prompt), CANALS, VENICE)
    text, prompt_ids = encode_prompt(tokenizer, get_prompt(prompt), CANALS)
    num = example.num_prompt_tokens
    assert (example.token_ids.dtype, example.segments.dtype) == (np.int32, np.int8)
    assert example.token_ids[:num].tolist() == prompt_ids
    assert example.segments.tolist() == sorted(example.segments.tolist()) and set(example.segments) == {0, 1, 2}
    assert tokenizer.decode(example.token_ids[:num].tolist()).removeprefix("<s>").strip() == text.strip()
    parts = [tokenizer.decode(example.token_ids[example.segments == segment]).strip() for segment in (1, 2)]
    sentence = get_prompt(prompt).answer_sentence(CANALS, "D")
    assert parts == ["It has canals.", sentence + tokenizer.eos_token]
    assert example.token_ids[-1] == tokenizer.eos_token_id
    assert (example.id, example.question_id) == ("q1/big/0", "q1")
    assert example.completion_hash == hash_text(f"It has canals. {sentence}")


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_ids_do_not_depend_on_the_completion(tokenizers: dict[str, PreTrainedTokenizerBase], kind: str) -> None:
    rationales = [None, VENICE, replace(VENICE, text="日本 \n x"), replace(VENICE, text="!?")]
    examples = [build_example(tokenizers[kind], get_prompt("cot"), CANALS, rationale) for rationale in rationales]
    prompts = [example.token_ids[: example.num_prompt_tokens].tolist() for example in examples]
    assert all(prompt == prompts[0] for prompt in prompts)
    assert len({example.text_hash for example in examples}) == 4


@pytest.mark.parametrize("text", ["It has canals.", "日本", "(D) it is", "48/2 = 24"])
def test_prompt_and_completion_meet_where_the_tokenizer_splits_anyway(
    tokenizers: dict[str, PreTrainedTokenizerBase], text: str
) -> None:
    tokenizer = tokenizers["byte-level"]
    raw, prompt_ids = encode_prompt(tokenizer, get_prompt("instruction"), CANALS)
    completion_ids, _ = encode_completion(tokenizer, text, "The answer is D.")
    whole = tokenizer(f"{raw}{text} The answer is D.").input_ids
    assert whole == prompt_ids + completion_ids[:-1]


def test_a_chat_template_wraps_the_prompt(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    text, ids = encode_prompt(tokenizers["chat"], get_prompt("instruction"), CANALS)
    assert text == f"<|user|>{get_prompt('instruction').render(CANALS, chat=True)}<|end|><|assistant|>"
    special = tokenizers["chat"].convert_tokens_to_ids(["<|user|>", "<|end|>", "<|assistant|>"])
    assert [ids[0], *ids[-2:]] == special
    assert tokenizers["chat"].decode(ids) == text


def test_a_begin_token_starts_the_prompt_once_and_an_end_token_does_not_end_it(
    tokenizers: dict[str, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    tokenizer = tokenizers["sentencepiece"]
    example = build_example(tokenizer, get_prompt("plain"), CANALS, VENICE)
    assert np.flatnonzero(example.token_ids == tokenizer.bos_token_id).tolist() == [0]
    ending = train_byte_level()
    ending.post_processor = TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)])
    ending_tokenizer = load_tokenizer(save(tmp_path, ending))
    assert ending_tokenizer("x").input_ids[-1] == ending_tokenizer.eos_token_id
    for rationale in (None, VENICE):
        with_end = build_example(ending_tokenizer, get_prompt("plain"), CANALS, rationale)
        without = build_example(tokenizers["byte-level"], get_prompt("plain"), CANALS, rationale)
        assert with_end.token_ids.tolist() == without.token_ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_label_supervision_has_an_answer_only(tokenizers: dict[str, PreTrainedTokenizerBase], kind: str) -> None:
    example = build_example(tokenizers[kind], get_prompt("cot"), CANALS, None)
    assert set(example.segments) == {PROMPT, ANSWER} and example.id == "q1/label"
    answer = tokenizers[kind].decode(example.token_ids[example.segments == ANSWER], skip_special_tokens=True)
    assert answer == "The answer is D) Venice."
    number = build_example(tokenizers[kind], get_prompt("cot"), MATHS, None)
    answer = tokenizers[kind].decode(number.token_ids[number.segments == ANSWER], skip_special_tokens=True)
    assert answer == "The answer is 72."


def test_a_rationale_without_an_answer_is_all_rationale(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    rationale = replace(VENICE, text="Hm, who knows.", answer=None, correct=False)
    example = build_example(tokenizers["byte-level"], get_prompt("cot"), CANALS, rationale)
    assert set(example.segments) == {PROMPT, RATIONALE}
    assert example.token_ids[-1] == tokenizers["byte-level"].eos_token_id


def test_examples_without_anything_to_supervise_have_no_tokens(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    pairs = [(replace(CANALS, gold=None), None), (CANALS, replace(VENICE, text=" \n")), (CANALS, VENICE)]
    lengths = [len(example.token_ids) for example in build_examples(tokenizers["byte-level"], get_prompt("cot"), pairs)]
    assert lengths[:2] == [0, 0] and lengths[2] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once_are_tokenized_like_one_at_a_time(
    tokenizers: dict[str, PreTrainedTokenizerBase], kind: str
) -> None:
    tokenizer, prompt = tokenizers[kind], get_prompt("cot")
    texts = ["It has canals.", "日本 \n x", "!?", " (D)  it is ", "So the answer is (D).", "x" * 300, "🙂 é"]
    pairs = [(question, rationale) for question, rationale in zip([CANALS, MATHS], [None, None], strict=True)]
    pairs += [(CANALS, replace(VENICE, text=text, sample=index)) for index, text in enumerate(texts)]
    for (question, rationale), example in zip(pairs, build_examples(tokenizer, prompt, pairs), strict=True):
        if tokenizer.chat_template:
            message = {"role": "user", "content": prompt.render(question, chat=True)}
            text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = tokenizer(prompt.render(question, chat=False)).input_ids
        parts = split_completion(question, rationale, prompt) if rationale else (
            "", prompt.answer_sentence(question, question.gold)
        )  # fmt: skip
        completion = tokenizer(" ".join(parts).strip(), add_special_tokens=False).input_ids
        assert example.token_ids.tolist() == [*ids, *completion, tokenizer.eos_token_id]
        assert example.num_prompt_tokens == len(ids)
        alone = build_example(tokenizer, prompt, question, rationale)
        assert example.segments.tolist() == alone.segments.tolist() and example.text_hash == alone.text_hash


def test_what_turns_text_into_tokens_is_hashed_and_a_calls_settings_are_not(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / "plain", train_byte_level()),
        save(tmp_path / "chat", train_byte_level(), chat_template=CHAT_TEMPLATE),
        save(tmp_path / "pad", train_byte_level(), bos_token="<|user|>"),
        save(tmp_path / "small", train_byte_level(330)),
    ]
    assert len({hash_tokenizer(load_tokenizer(path)) for path in paths}) == 4
    used = load_tokenizer(paths[0])
    used(["a b c d", "e"], truncation=True, max_length=2)
    assert hash_tokenizer(used) == hash_tokenizer(load_tokenizer(paths[0]))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It has canals.", ("It has canals.", "The answer is D) Venice.")),
        ("It has canals. So the answer is (D).", ("It has canals.", "So the answer is (D).")),
        ("The answer is D. It has canals.", ("The answer is D. It has canals.", "The answer is D) Venice.")),
    ],
)
def test_the_teachers_own_answer_sentence_is_kept(text: str, parts: tuple[str, str]) -> None:
    assert split_completion(CANALS, replace(VENICE, text=f" {text}\n"), get_prompt("cot")) == parts


@pytest.mark.parametrize(
    ("text", "normalize", "parts"),
    [
        ("It has canals. The answer", False, ("It has canals. The answer", "")),
        ("It has canals. The answer", True, ("It has canals. The answer", "")),
        ("It has canals. The answer is D) Venice.", False, ("It has canals.", "The answer is D) Venice.")),
        ("It has canals. So D is correct.", True, ("It has canals.", "The answer is D) Venice.")),
    ],
)
def test_a_torn_text_gets_no_answer_sentence(text: str, normalize: bool, parts: tuple[str, str]) -> None:
    torn = replace(VENICE, text=text, answer="D", finish_reason="length")
    assert split_completion(CANALS, torn, get_prompt("cot"), normalize) == parts


def test_what_a_teacher_invented_after_its_answer_is_not_learnt() -> None:
    invented = "It has canals. The answer is D.\n\nQuestion: Which is in the USA?\nAnswer: The answer is B."
    assert split_completion(CANALS, replace(VENICE, text=invented), get_prompt("cot")) == (
        "It has canals.",
        "The answer is D.",
    )


anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@given(rationale=anything, answer=st.sampled_from(["The answer is D) Venice.", "#### 72", "答えは D。", ""]))
@settings(max_examples=150)
def test_a_completion_decodes_to_its_text(
    tokenizers: dict[str, PreTrainedTokenizerBase], kind: str, rationale: str, answer: str
) -> None:
    tokenizer = tokenizers[kind]
    ids, segments = encode_completion(tokenizer, rationale, answer)
    assert tokenizer.decode(ids[:-1]) == f"{rationale} {answer}".strip()
    assert ids[-1] == tokenizer.eos_token_id and len(ids) == len(segments)
    assert segments == sorted(segments) and set(segments) <= {RATIONALE, ANSWER}
    if answer:
        own = [token for token, segment in zip(ids, segments, strict=True) if segment == ANSWER]
        assert tokenizer.decode(own).lstrip() == answer + tokenizer.eos_token
    else:
        assert ANSWER not in segments


def test_fingerprint_is_of_the_vocabulary_not_of_the_settings(tmp_path: Path) -> None:
    reference = fingerprint_tokenizer(load_tokenizer(save(tmp_path / "one", train_byte_level())))
    truncating = train_byte_level()
    truncating.enable_truncation(5)
    truncating.enable_padding(length=8, pad_token="<|end|>")
    same = [
        save(tmp_path / "two", train_byte_level()),
        save(tmp_path / "chat", train_byte_level(), chat_template=CHAT_TEMPLATE),
        save(tmp_path / "left", train_byte_level(), padding_side="left", model_max_length=7),
        save(tmp_path / "truncating", truncating),
    ]
    assert {fingerprint_tokenizer(load_tokenizer(path)) for path in same} == {reference}
    used = load_tokenizer(same[0])
    used(["a b c d"], truncation=True, max_length=2)
    assert fingerprint_tokenizer(used) == reference


def test_fingerprint_tells_other_tokenizers_apart(tmp_path: Path) -> None:
    extended, lowered, split = train_byte_level(), train_byte_level(), train_byte_level()
    extended.add_tokens(["canals"])
    lowered.normalizer = Lowercase()
    split.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split.pre_tokenizer])
    swapped = json.loads(train_byte_level().to_str())
    merges = swapped["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    others = [extended, lowered, split, train_byte_level(330), Tokenizer.from_str(json.dumps(swapped))]
    paths = [save(tmp_path / str(index), other) for index, other in enumerate([train_byte_level(), *others])]
    assert len({fingerprint_tokenizer(load_tokenizer(path)) for path in paths}) == 6


def test_a_sentencepiece_tokenizer_keeps_its_fingerprint_when_saved(
    tokenizers: dict[str, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    tokenizers["sentencepiece"].save_pretrained(tmp_path)
    saved = fingerprint_tokenizer(load_tokenizer(str(tmp_path)))
    assert saved == fingerprint_tokenizer(tokenizers["sentencepiece"])
    assert saved != fingerprint_tokenizer(tokenizers["byte-level"])


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no tokenizer can be loaded: "):
        load_tokenizer(str(tmp_path / "empty"))
    PreTrainedTokenizerFast(tokenizer_object=train_byte_level()).save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match=r"endless: Kindred needs a fast tokenizer \(tokenizer\.json\) with an end"):
        load_tokenizer(str(tmp_path / "endless"))
    with pytest.raises(ValueError, match=r"no such folder, and no hub id \(owner/name\): /no/such/model"):
        load_tokenizer("/no/such/model")
    with pytest.raises(ValueError, match=r"no such file: .*none\.gguf"):
        load_tokenizer(str(tmp_path / "none.gguf"))
    with pytest.raises(ValueError, match=r"revision main is given, but .* is a local path"):
        load_tokenizer(save(tmp_path / "plain", train_byte_level()), revision="main")
