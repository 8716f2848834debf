"""The stages' commands on the microworld, and what each leaves where nothing disturbs it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts.benchmarks.reliability import contents
from scripts.benchmarks.reliability.processes import Ended, run_whole

ROOT = Path(__file__).parents[3]
_MODELS = ROOT / "configs" / "models" / "microworld"
_COMMON = ["--data.prompt=plain", "--trainer.enable_progress_bar=false"]
_TRAIN = [*_COMMON, "--data.questions=microworld:train:24:0"]
_TEACHER = [f"--model.teacher={_MODELS}/a-teacher", "--data.batches.tokens_per_batch=600"]
_WRITTEN = '--data.rationales=["teacher/rationales.parquet"]'
COMMANDS = {
    "annotate": [
        *(*_TRAIN, *_TEACHER, "--model.family=a", "--model.max_new_tokens=96", "--data.encoding.max_length=320"),
        "--output=teacher/rationales.parquet",
    ],
    "cache_logits": [
        *(
            *_TRAIN,
            *_TEACHER,
            _WRITTEN,
            "--model.top_k=8",
            "--data.encoding.max_length=512",
            "--rows_per_shard=100",
            "--output=teacher/logits",
        ),
    ],
    "fit": [
        *(*_TRAIN, _WRITTEN, f"--model.student={_MODELS}/a-student", "--model.loss.kl_weight=0.5"),
        *(
            "--data.batches.tokens_per_step=600",
            "--data.validation.fraction=0.25",
            "--data.supervision=rationale+logits",
        ),
        *('--data.logits=["teacher/logits"]', "--trainer.max_epochs=4", "--run.checkpoint_steps=1"),
        "--run.keep_checkpoints=true",
        *("--run.group=g", "--run.id=r", "--run.wandb=false", "--data.encoding.max_length=512"),
    ],
    "evaluate": [
        *(*_COMMON, "--data.questions=microworld:test:24:0", "--data.batches.tokens_per_batch=600"),
        *(
            "--model.student=runs/g/r/student",
            "--model.max_new_tokens=96",
            "--data.encoding.max_length=320",
            "--model.arm=rationale+logits-a",
        ),
        *("--output=predictions.parquet", "--wandb.enabled=false"),
    ],
    "study": ["run", "--config=tiny.yaml"],
}
OTHER_CONFIG = ["--model.learning_rate=1e-3"]
OUTPUTS = {
    "annotate": "teacher/rationales.parquet",
    "cache_logits": "teacher/logits",
    "fit": "runs/g/r",
    "evaluate": "predictions.parquet",
    "study": "runs/tiny",
}
_READERS: dict[str, Callable[[Path], Any]] = {
    "annotate": contents.read_rationales,
    "cache_logits": contents.read_cache,
    "fit": contents.read_weights,
    "evaluate": contents.read_predictions,
    "study": contents.read_study,
}


def list_names(folder: Path) -> list[str]:
    """Returns what lies in a folder; but for tokenized stores, which more than one stage writes, and checkpoints."""
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    skipped = ("data", "checkpoints", "logs", "configs")
    return sorted(str(name) for name in names if not set(name.parts) & set(skipped))


def read_output(stage: str, folder: Path) -> str:
    """Returns a hash of what a stage's output says."""
    return contents.digest(_READERS[stage](folder / OUTPUTS[stage]))


def write_study(folder: Path) -> None:
    """Declares a study of one teacher, one student and one seed, whose jobs are one of each stage and a baseline."""
    (folder / "configs").symlink_to(ROOT / "configs")
    config = yaml.safe_load((ROOT / "configs" / "experiments" / "microworld.yaml").read_text())
    study = config["study"]
    study |= {"name": "tiny", "seeds": 1, "workers": 1, "supervisions": ["rationale+logits"]}
    study["tasks"] = {"microworld": {"train": "microworld:train:24:0", "test": ["microworld:test:24:0"]}}
    study |= {name: {"a": study[name]["a"]} for name in ("students", "teachers")}
    config["fit"]["trainer"] |= {"max_epochs": 2, "log_every_n_steps": 1}
    config["fit"]["data"]["batches"]["tokens_per_step"] = 600
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


@dataclass
class Bench:
    """A folder in which every stage has run undisturbed.

    Attributes:
        folder: With all outputs.
        seconds: What each stage took.
        contents: A hash of what each output says.
        complaints: What each said on stderr.
        names: What lies beside each output.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    complaints: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def run(self, stage: str, *more: str) -> None:
        """Runs a stage where those before it have run."""
        if stage == "study":
            write_study(self.folder)
        ended = run_whole(stage, [*COMMANDS[stage], *more], self.folder)
        self.seconds[stage], self.complaints[stage] = ended.seconds, ended.complaints
        self.contents[stage] = read_output(stage, self.folder)
        self.names[stage] = list_names((self.folder / OUTPUTS[stage]).parent)

    def begin(self, stage: str, folder: Path) -> None:
        """Makes a folder as it was just before the stage, without a tokenized store."""
        folder.mkdir(parents=True)
        if stage == "study":
            write_study(folder)
            return
        for earlier in ("annotate", "cache_logits", "fit", "evaluate"):
            if earlier == stage:
                break
            source, target = self.folder / OUTPUTS[earlier], folder / OUTPUTS[earlier]
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoints"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def find_difference(self, stage: str, folder: Path, ended: Ended) -> str | None:
        """Returns what is not as where nothing disturbed the stage, None if all is."""
        if ended.code != 0:
            return f"the rerun failed: {ended}"
        if read_output(stage, folder) != self.contents[stage]:
            return "the result is another"
        if ended.complaints != self.complaints[stage]:
            return f"the rerun says {ended.complaints}"
        names = list_names((folder / OUTPUTS[stage]).parent)
        if names != self.names[stage]:
            return f"it leaves {sorted(set(names) ^ set(self.names[stage]))}"
        return None


def prepare(folder: Path, stages: list[str], *last: str) -> Bench:
    """Runs stages in a new folder, each after those that it needs, the last with more arguments."""
    folder.mkdir(parents=True)
    bench = Bench(folder)
    for stage in stages:
        bench.run(stage, *(last if stage == stages[-1] else ()))
    return bench
