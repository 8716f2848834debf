"""The cluster page's commands for a teacher over two nodes, as they are written, with an engine in vLLM's place."""

import json
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from scripts import annotate, cache_logits
from tests.docs.pages import ROOT, read_blocks
from tests.scripts.pipeline import MODELS

PAGE = ROOT / "docs" / "guides" / "cluster.md"
STAGES = {"scripts.annotate": annotate, "scripts.cache_logits": cache_logits}


def read_commands() -> dict[str, list[str]]:
    """Returns the arguments of each stage in the page's block on an engine over several nodes."""
    [block] = [block for block in read_blocks(PAGE) if "distributed_executor_backend=ray" in block.text]
    lines = block.text.replace("\\\n", " ").strip().splitlines()
    words = [shlex.split(line) for line in lines]
    assert all(own[:2] == ["python", "-m"] for own in words)
    return {own[2]: own[3:] for own in words}


def test_one_engine_over_two_nodes_writes_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "fake_vllm" / "vllm.py")))
    monkeypatch.setattr("lightning_modules.teacher.vllm_backend.import_vllm", lambda: fake)
    log = tmp_path / "engines.jsonl"
    monkeypatch.setenv("FAKE_VLLM_LOG", str(log))
    teacher, texts = f"{MODELS}/a-teacher", str(tmp_path / "a.parquet")
    data = {"questions": "microworld:train:4:0", "prompt": "plain", "encoding": {"max_length": 320}}
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    config = tmp_path / "experiment.yaml"
    sections = {
        "annotate": {"model": {"teacher": teacher, "family": "a", "max_new_tokens": 48}, "data": data, "output": texts},
        "cache_logits": {
            "model": {"teacher": teacher},
            "data": {**data, "rationales": [texts]},
            "output": str(tmp_path / "logits"),
        },
    }
    config.write_text(json.dumps({name: {**section, "trainer": quiet} for name, section in sections.items()}))
    commands = read_commands()
    assert commands.keys() == STAGES.keys()
    for stage, args in commands.items():
        STAGES[stage].main([arg.replace("$CONFIG", str(config)) for arg in args])
    engines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(engines) == 2
    for engine in engines:
        own = (engine["tensor_parallel_size"], engine["pipeline_parallel_size"], engine["distributed_executor_backend"])
        assert own == (4, 2, "ray")
    assert len(pq.read_table(texts)) == 4 and (tmp_path / "logits" / "manifest.json").exists()
