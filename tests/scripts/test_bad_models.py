"""Models, adapters and checkpoints that are none: one clear line on stderr, exit code 2, and nothing written."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

JSON = {
    "empty": b"",
    "cut off": b'{"model_type": "lla',
    "list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "deep": b"[" * 100_000,
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
    "bytes": b"\xff\xfe\x00",
}


class Payload:
    """Leaves a file behind where a pickle is loaded."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch EXECUTED",)


def copy_model(bench, change: Callable[[Path], object]) -> str:
    folder = shutil.copytree("models/student", bench.folder / "changed")
    change(folder)
    return "changed"


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "tokenizer.json",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("adapter_config.json", "kindred.json")),
    ],
)
def test_a_models_json_is_none(bench, file: str, content: bytes) -> None:
    model = copy_model(bench, lambda folder: (folder / file).write_bytes(content))
    assert "changed" in bench.refuse("evaluate", f"--model.student={model}")


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
@pytest.mark.parametrize("name", ["changed/model.safetensors", "changed.gguf"])
def test_weights_are_none(bench, name: str, content: bytes) -> None:
    model = copy_model(bench, lambda folder: (bench.folder / name).write_bytes(content))
    assert "changed" in bench.refuse("evaluate", f"--model.student={name if name.endswith('gguf') else model}")


@pytest.mark.parametrize(
    "write",
    [
        lambda content: content[:5000],
        lambda content: content[:-1],
        lambda content: (2**62).to_bytes(8, "little") + b"{}",
        lambda content: (90_000_000).to_bytes(8, "little") + b"{" + b" " * 1000,
        lambda content: (0).to_bytes(8, "little") + content[8:],
        lambda content: content[:8] + b"\x00" + content[9:],
        lambda content: b"GGUF" + b"\xff" * 100,
    ],
    ids=["short", "a byte short", "huge header", "longer header", "no header", "no JSON", "GGUF"],
)
@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
def test_weights_are_damaged(bench, stage: str, write: Callable[[bytes], bytes]) -> None:
    role = "teacher" if stage == "annotate" else "student"
    file = Path("model.safetensors")
    model = copy_model(bench, lambda folder: (folder / file).write_bytes(write((folder / file).read_bytes())))
    assert "changed: no model can be loaded" in bench.refuse(stage, f"--model.{role}={model}")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": 5}', b"{"])
def test_an_index_of_weights_is_none(bench, content: bytes) -> None:
    def split(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_bytes(content)

    assert "changed: no model can be loaded" in bench.refuse("evaluate", f"--model.student={copy_model(bench, split)}")


def change_weight(folder: Path, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if weights[name].ndim == 2)
    changed = change(weights.pop(name))
    save_file(weights | ({} if changed is None else {name: changed}), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weight: None, "they lack"),
        (lambda weight: weight[:, :-1].contiguous(), "another shape"),
        (lambda weight: weight * float("nan"), "not finite"),
    ],
)
@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
def test_weights_are_not_those_of_the_config(bench, stage: str, change: Callable, named: str) -> None:
    role = "teacher" if stage == "annotate" else "student"
    model = copy_model(bench, lambda folder: change_weight(folder, change))
    line = bench.refuse(stage, f"--model.{role}={model}")
    assert "changed: " in line and named in line


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("annotate", []),
        ("annotate", ["--model.num_samples=2", "--model.temperature=1"]),
        ("cache_logits", []),
        ("cache_logits", ["--model.kind=labels", "--model.top_k=null"]),
        ("evaluate", []),
    ],
)
def test_what_a_model_computes_is_not_finite(bench, stage: str, options: list[str]) -> None:
    """As where a model of bfloat16 runs in float16: each weight is a number, but their products are none."""

    def overflow(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        grown = {name: weights[name] * 1e30 for name in weights if "q_proj" in name or "k_proj" in name}
        assert grown
        save_file(weights | grown, folder / "model.safetensors", {"format": "pt"})

    role = "student" if stage == "evaluate" else "teacher"
    line = bench.refuse(stage, f"--model.{role}={copy_model(bench, overflow)}", *options)
    assert "changed: what it computes in float32 is not finite; set another model.dtype" in line


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": 10},
        {"vocab_size": "many"},
        {"vocab_size": -3},
        {"vocab_size": 10**12},
        {"num_hidden_layers": "x"},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"hidden_size": [1]},
        {"hidden_size": 0},
        {"hidden_act": "nope"},
        {"rope_parameters": 5},
        {"rope_parameters": {"rope_type": "nope"}},
        {"max_position_embeddings": "x"},
        {"max_position_embeddings": -1},
        {"model_type": 5},
        {"model_type": "nonesuch"},
        {"model_type": "bert"},
        {"quantization_config": 7},
        {"text_config": {"a": 1}},
        {"eos_token_id": "x"},
        {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, "model_type": "evil"},
    ],
    ids=str,
)
def test_a_value_of_a_models_config_is_wrong(bench, values: dict) -> None:
    model = copy_model(bench, lambda folder: edit_json(folder / "config.json", **values))
    (bench.folder / model / "evil.py").write_text("open('EXECUTED', 'w')")
    assert "changed" in bench.refuse("evaluate", f"--model.student={model}")


@pytest.mark.parametrize("part", ["model", "added_tokens", "normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.slow
@pytest.mark.parametrize("value", [5, "x", {"type": "nope"}], ids=str)
def test_a_part_of_a_tokenizer_is_wrong(bench, part: str, value: object) -> None:
    model = copy_model(bench, lambda folder: edit_json(folder / "tokenizer.json", **{part: value}))
    assert "changed: no tokenizer can be loaded" in bench.refuse("evaluate", f"--model.student={model}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ bad",
        "{{ messages[99].x.y }}",
        "{{ raise_exception('') }}",
        "{{ raise_exception('no') }}",
        "{{ messages | nope }}",
        "{% include 'x' %}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0]['content'][::-1] }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        5,
        [{"name": "x"}],
    ],
    ids=str,
)
def test_a_chat_template_is_broken(bench, template: object) -> None:
    model = copy_model(bench, lambda folder: edit_json(folder / "tokenizer_config.json", chat_template=template))
    assert "changed" in bench.refuse("evaluate", f"--model.student={model}")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"base_model_name_or_path": "../nowhere", "peft_type": "LORA"}, "no such folder"),
        ({"base_model_name_or_path": "changed", "peft_type": "LORA", "revision": None}, "leads back to itself"),
        ({"base_model_name_or_path": "./models/../changed", "peft_type": "LORA"}, "leads back to itself"),
        ({"peft_type": "LORA"}, "base_model_name_or_path must be"),
        ({"base_model_name_or_path": 3, "peft_type": "LORA"}, "base_model_name_or_path must be"),
        ({"base_model_name_or_path": "models/teacher", "peft_type": "NOPE", "revision": None}, "adapter"),
        ({"base_model_name_or_path": "models/teacher", "peft_type": "LORA", "revision": None}, "adapter"),
    ],
)
def test_an_adapter_is_none(bench, config: dict, named: str) -> None:
    pytest.importorskip("peft", reason="the extra peft is not installed")
    model = copy_model(bench, lambda folder: (folder / "adapter_config.json").write_text(json.dumps(config)))
    assert named in bench.refuse("evaluate", f"--model.student={model}")


@pytest.mark.parametrize("model", ["", ".", "/", "model:", "model:nope", "a/b/c", "~/x", "http://x/y", "r.parquet"])
def test_a_name_is_no_models(bench, model: str) -> None:
    line = bench.refuse("evaluate", f"--model.student={model}")
    assert "model" in line or f"{model}: no tokenizer can be loaded" in line


# A run's checkpoint, and the config beside it.

MODEL = "model: {student: models/student, revision: null, keep_layers: null, adapter: null}\n"
CHECKPOINT = "--model.student=g/x/checkpoints/last.ckpt"


def make_run(config: str | bytes, checkpoint: object) -> None:
    folder = Path("g/x/checkpoints")
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
    if isinstance(checkpoint, bytes):
        (folder / "last.ckpt").write_bytes(checkpoint)
    else:
        torch.save(checkpoint, folder / "last.ckpt")


@pytest.mark.parametrize(
    "checkpoint",
    [
        b"",
        b"no checkpoint",
        pickle.dumps(Payload()),
        {"state_dict": {}, "x": Payload()},
        {"state_dict": {}},
        {"state_dict": {"model.lm_head.weight": 3}},
        {"state_dict": [1]},
        {"global_step": 3},
        [1, 2],
        torch.zeros(2),
    ],
    ids=["empty", "text", "pickle", "payload", "no weights", "number", "list", "no state", "no dict", "tensor"],
)
def test_a_checkpoint_is_none(bench, checkpoint: object) -> None:
    make_run(MODEL, checkpoint)
    assert "last.ckpt" in bench.refuse("evaluate", CHECKPOINT)


@pytest.mark.parametrize(
    "config",
    [
        "[1, 2]\n",
        "",
        "x: 1\n",
        "model: {}\n",
        "model: 3\n",
        "model: !!python/object/apply:os.system ['touch EXECUTED']\n",
        "model: {student: 3, revision: null, keep_layers: null}\n",
        "model: {student: models/student, revision: 2020-01-01, keep_layers: all}\n",
        "model: {student: models/student, revision: null, keep_layers: [a]}\n",
        "model: {student: g/x/checkpoints/last.ckpt, revision: null, keep_layers: null}\n",
        "model: {student: models/../g/x/checkpoints/last.ckpt, revision: null, keep_layers: null}\n",
        "model: {student: [",
        b"\xff\xfe\x00",
    ],
)
def test_the_config_beside_a_checkpoint_is_none(bench, config: str | bytes) -> None:
    make_run(config, {"state_dict": {}})
    line = bench.refuse("evaluate", CHECKPOINT)
    assert "g/x/config.yaml" in line or "began with" in line
