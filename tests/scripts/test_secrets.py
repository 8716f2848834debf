"""Secrets of the environment are used, and written nowhere: not by any stage, not when it fails, not to W&B's files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import wandb

from scripts import annotate, evaluate, fit, import_rationales, status, study, sweep
from scripts.cache_logits import main as cache_logits
from scripts.common.entry import run_main
from tests.chat_server import serve
from tests.scripts.conftest import COMMANDS, Bench
from tests.scripts.pipeline import ROOT

CANARIES = {
    name: f"canary-{name.lower()}-0123456789abcdef"
    for name in (
        "OPENAI_API_KEY", "MY_KEY", "WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY",
        "ANTHROPIC_API_KEY", "GITHUB_TOKEN",
    )
}  # fmt: skip


def find_canaries(folder: Path, said: str) -> list[str]:
    """Returns where secrets stand: in what was said, or in a file's bytes."""
    texts = {"said": said.encode()} | {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return [
        f"{where}: {name}" for where, text in texts.items() for name, key in CANARIES.items() if key.encode() in text
    ]


@pytest.mark.slow
def test_no_command_writes_a_secret(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai", reason="the extra openai is not installed")
    for name, key in CANARIES.items():
        monkeypatch.setenv(name, key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (bench.folder / "configs").symlink_to(ROOT / "configs")
    microworld = f"--config={ROOT / 'configs' / 'experiments' / 'microworld.yaml'}"
    with serve("models/teacher") as server:
        server.key = CANARIES["MY_KEY"]
        asked = [
            "--model.teacher=tiny", "--model.max_new_tokens=6", "--model.backend=OpenAIBackend",
            f"--model.backend.base_url={server.url}", "--model.backend.key_variable=MY_KEY",
            "--data.questions=colours_train.jsonl",
        ]  # fmt: skip
        commands: list[tuple[Callable, list[str], int]] = [
            (annotate.main, [*asked, "--output=out/asked.parquet"], 0),
            (annotate.main, [*asked, "--output=out/dry.parquet", "--dry-run"], 0),
            (annotate.main, [*asked, "--output=out/no.parquet", "--model.backend.key_variable=GITHUB_TOKEN"], 2),
            (annotate.main, ["summary", "out/asked.parquet"], 0),
            (cache_logits, COMMANDS["cache_logits"], 0),
            (cache_logits, ["inspect", "out/logits"], 0),
            (fit.main, COMMANDS["fit"], 0),
            (fit.main, [*COMMANDS["fit"], "--model.learning_rate=-1"], 2),
            (status.main, ["runs"], 0),
            (evaluate.main, COMMANDS["evaluate"], 0),
            (evaluate.main, ["metrics", "out/p.parquet"], 0),
            (study.main, ["status", microworld], 0),
            (study.main, ["jobs", microworld], 0),
            (sweep.main, [str(ROOT / "configs" / "sweeps" / "microworld_loss.yaml"), "--dry-run"], 0),
            (import_rationales.main, ["jsonl", "nowhere", "--questions=colours_train.jsonl", "--output=i.parquet"], 2),
        ]  # fmt: skip
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        for main, args, expected in commands:
            code = 0
            try:
                run_main(lambda main=main, args=args: main(args), str(ROOT / "scripts" / "any.py"))
            except SystemExit as stop:
                code = stop.code
            assert code == expected, (args, bench.capsys.readouterr())
    wandb.teardown()
    said = bench.capsys.readouterr()
    assert find_canaries(bench.folder, said.out + said.err) == []
    # The key was used, and W&B wrote its files.
    assert len(server.bodies) > 8 and [*bench.folder.rglob("*.wandb")]
