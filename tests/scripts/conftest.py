"""A bench on which the scripts' own `main(args)` run: tiny real models and files in a folder of the test's own."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from scripts import cache_logits
from scripts.common.entry import run_main
from tests.scripts import pipeline as stages
from tests.scripts.pipeline import MAINS
from tests.tiny import make_questions, make_rationale, save_model, write_questions, write_store

# Each stage's command on the bench; later arguments override earlier ones.
COMMON = [
    "--data.questions=colours_train.jsonl",
    "--data.prompt=plain",
    "--data.encoding.max_length=512",
    "--trainer.enable_progress_bar=false",
]
COMMANDS = {
    "annotate": [*COMMON, "--model.teacher=models/teacher", "--model.max_new_tokens=4", "--output=out/r.parquet"],
    "cache_logits": [
        *COMMON,
        "--model.teacher=models/teacher",
        "--model.top_k=8",
        '--data.rationales=["r.parquet"]',
        "--output=out/logits",
    ],
    "fit": [
        *COMMON,
        "--model.student=models/student",
        "--model.loss.kl_weight=0.5",
        '--data.rationales=["r.parquet"]',
        "--data.supervision=rationale+logits",
        '--data.logits=["logits"]',
        "--trainer.max_epochs=1",
        "--run.group=bench",
        "--run.id=run",
    ],
    "evaluate": [*COMMON, "--model.student=models/student", "--model.max_new_tokens=4", "--output=out/p.parquet"],
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models: more threads only cost."""
    torch.set_num_threads(1)


def list_files(folder: Path) -> dict[str, str]:
    """Returns every path below a folder, with the hash of each file's content.

    What was tokenized is left out: it is kept by what it depends on, also where the command then refuses the rest.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[:2] not in [("data",), ("data", "tokenized")]
    }


class Bench:
    """A folder with models, questions, rationales and logits, in which stages run.

    Attributes:
        said: What the last command that was refused had printed before.
    """

    said: str

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture):
        self.folder, self.capsys = folder, capsys

    def run(self, stage: str, *more: str) -> str:
        """Runs a stage that must succeed; returns what it printed."""
        return self.run_main(MAINS[stage], [*COMMANDS[stage], *more])

    def run_main(self, main: Callable, args: list[str]) -> str:
        """Likewise, for any script and its whole command line."""
        self.capsys.readouterr()
        main(args)
        return self.capsys.readouterr().out

    def refuse(self, stage: str, *more: str, writes: str | None = None) -> str:
        """Runs a stage that must refuse its input as a user sees it, and write nothing else; returns the line."""
        return self.refuse_main(MAINS[stage], [*COMMANDS[stage], *more], writes)

    def refuse_main(self, main: Callable, args: list[str], writes: str | None = None) -> str:
        """Likewise, for any script and its whole command line."""
        before = list_files(self.folder)
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_main(lambda: main(args), str(stages.ROOT / "scripts" / "any.py"))
        # A model may have been loaded, and some of the work done first.
        self.said, complained = self.capsys.readouterr()
        complaints = [line for line in complained.splitlines() if line]
        lines = [line for line in complaints if not line.startswith("Loading weights: ") and " gone, " not in line]
        assert stopped.value.code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        after = list_files(self.folder)
        assert writes is None or after.pop(writes)
        assert after == before
        return lines[0]

    def edit(self, path: str, change: Callable[[list[dict]], list[dict]]) -> None:
        """Changes the records of a jsonl file."""
        file = self.folder / path
        records = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(record) + "\n" for record in change(records)))


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    """Ends what a trainer in this process has begun: its port, left in the environment, is a later process's own."""
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def bench_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions; a teacher's rationales of them; its logits; models that do and do not share its tokenizer."""
    folder = tmp_path_factory.mktemp("bench")
    teacher = save_model(folder / "models" / "teacher", seed=1, context=2048)
    save_model(folder / "models" / "student", seed=2, context=2048)
    save_model(folder / "models" / "other", seed=3, context=2048, corpus=("iron", "glass", "wood"))
    save_model(folder / "models" / "small", seed=4, context=64)
    items = make_questions(8)
    write_questions(folder / "colours_train.jsonl", items)
    rationales = [make_rationale(item, "teacher") for item in items]
    write_store(folder / "r.parquet", rationales, teacher)
    (folder / "r.jsonl").write_text("".join(json.dumps(vars(rationale)) + "\n" for rationale in rationales))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cache_logits.main([*COMMANDS["cache_logits"], "--output=logits"])
    return folder


@pytest.fixture
def bench(bench_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Bench:
    """A copy of the bench for one test, which is its working directory."""
    folder = shutil.copytree(bench_files, tmp_path / "bench")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return Bench(folder, capsys)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all four stages ran."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        for stage in stages.COMMANDS:
            stages.run_stage(stage)
    return folder


@pytest.fixture
def inside(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pipeline's folder, as working directory."""
    monkeypatch.chdir(pipeline)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return pipeline
