"""A run's folder: `runs/<group>/<id>/{config.yaml, meta.json, metrics.jsonl, checkpoints/, student/, DONE}`."""

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from datamodules.files.atomic import (
    check_name,
    check_place,
    hash_json,
    read_meta,
    read_whole_lines,
    refuse_foreign,
    remove_torn,
    write_json,
    write_jsonl,
    write_sealed,
    write_text,
)
from datamodules.files.locks import hold
from datamodules.files.seals import DONE, check_run_file, hash_run_files, read_sealed
from datamodules.provenance import describe_creation
from lightning_modules.run.wandb_mode import Wanted, check_project

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RunSettings:
    """Where a run is kept and how it is shown.

    Attributes:
        root: Folder of all runs.
        group: Runs that belong together.
        id: Names the run; null derives it from the resolved config.
        wandb: Log to Weights & Biases too, offline unless WANDB_MODE says otherwise, or is out of reach; `required`
            refuses to begin without W&B online.
        project: The W&B project.
        student_family: The student's family, as the teachers' are called; null is what its name tells.
        checkpoint_steps: Save a checkpoint after every so many optimizer steps, too, not at each epoch's end only.
        keep_checkpoints: Keep the checkpoints once the run is done; they are several times as large as its student.
        continues: The folder of a finished run whose weights, optimizer, schedule and step counter this one goes on
            with, on other data.
    """

    root: str = "runs"
    group: str = "default"
    id: str | None = None
    wandb: Wanted = True
    project: str = "kindred"
    student_family: str | None = None
    checkpoint_steps: PositiveInt | None = None
    keep_checkpoints: bool = False
    continues: str | None = None

    def __post_init__(self) -> None:
        check_name("run.group", self.group)
        if self.id is not None:
            check_name("run.id", self.id)
        check_project("run.project", self.project)


class RunFolder:
    """The files of one run.

    Args:
        settings: Where it is.
        config: The resolved configuration of everything that the result depends on.
    """

    def __init__(self, settings: RunSettings, config: dict[str, Any]):
        self.config = config
        self.id = settings.id or hash_json(config)[:10]
        self.keep_checkpoints = settings.keep_checkpoints
        self.path = Path(settings.root) / settings.group / self.id

    @property
    def is_done(self) -> bool:
        """Whether the run ended and its student is exported."""
        return (self.path / "DONE").is_file()

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """The exported student."""
        return self.path / "student"

    def check(self) -> None:
        """Refuses a folder that is another program's, or that another configuration has begun.

        Raises:
            ValueError: It is not Kindred's; or the configuration is another, then the message has what differs, with
                both values.
        """
        refuse_foreign(self.path)
        meta = read_meta(self.path)
        if meta is None:
            if self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise ValueError(f"{self.path}: holds runs, and is none itself; choose another run.group or run.id")
            return
        if meta["config_hash"] != hash_json(meta["config"]):
            raise ValueError(f"{self.path}/meta.json: its config is not what was written; delete the run's folder")
        begun, now = flatten(meta["config"]), flatten(json.loads(json.dumps(self.config)))
        # A file that is gone is not another one.
        begun = {key: value for key, value in begun.items() if key in now or not key.startswith("files.")}
        if begun != now:
            keys = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
            shown = ", ".join(f"{key} was {begun.get(key)!r} and is {now.get(key)!r}" for key in keys[:5])
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise ValueError(
                f"{self.path}: this run was begun with another config: {shown}{more}; "
                "choose another run.id or run.group, or delete the folder"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps the folder for this process; ends with the process, however it ends.

        An error before the first step, of a run that begins here, leaves nothing behind.

        Raises:
            ValueError: Another process has it, or has ended the run.
        """
        check_place(self.path / ".lock")
        try:
            with self._hold():
                if self.is_done:
                    raise ValueError(f"{self.path}: another process has just written here; run the same command again")
                is_new = not (self.path / "meta.json").exists()
                try:
                    self._remove_torn()
                    yield
                except Exception:
                    if is_new and not self.checkpoints.exists() and not (self.path / METRICS).exists():
                        self._remove_all_but_lock()
                    raise
        except Exception:
            # Only if it is empty: another process may have begun the run meanwhile.
            with suppress(OSError):
                self.path.rmdir()
            raise

    def begin(self, config_yaml: str, data: dict[str, str], seeds: dict[str, int], precision: str, step: int) -> None:
        """Writes `config.yaml` and `meta.json`, or, after an earlier attempt, makes its metrics end at its checkpoint.

        Args:
            config_yaml: The full config, which runs again as it is.
            data: Hashes of what is learned from, by name.
            seeds: By name.
            precision: The trainer's, which may depend on the machine; later attempts keep it.
            step: Of the checkpoint that the run goes on from; 0 for none.
        """
        if read_meta(self.path) is not None:
            self._trim_metrics(step)
        else:
            # First, since a folder that holds something without it is another program's.
            record = {**describe_creation(self.config), "config": self.config, "seeds": seeds, "data": data}
            write_json(self.path / "meta.json", {**record, "precision": precision})
        if not (self.path / "config.yaml").is_file():
            write_text(self.path / "config.yaml", config_yaml)

    def _trim_metrics(self, step: int) -> None:
        """Drops the lines that the resumed run will write again, and one that a kill tore."""
        if not (self.path / METRICS).is_file():
            return
        kept = []
        for record in read_metrics(self.path):
            # Step n's training metrics are logged as n while the checkpoint after it counts n + 1 steps; so are those
            # of the validation that follows it, but by an attempt that went on with the validation, as n + 1.
            if record["step"] > step or (record["step"] == step and (step == 0 or "train/loss" in record)):
                break
            kept.append(record)
        write_jsonl(self.path / METRICS, kept)

    def finish(self, facts: dict[str, Any]) -> None:
        """Marks the run as done, with what is known of it then, and with hashes of what others read of it."""
        write_sealed(self.path / DONE, {**facts, "sha256": hash_run_files(self.path)})
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        """Removes the checkpoints of a run that is done, unless they are to be kept."""
        if not self.keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def clear(self) -> None:
        """Removes what a process that was killed just after it had marked the run as done left in its folder."""
        self.drop_checkpoints()
        if any(self.path.glob(".*")):
            # Unless another process has not ended yet.
            with suppress(ValueError), self._hold():
                self._remove_torn()

    def _hold(self) -> AbstractContextManager[None]:
        return hold(self.path / ".lock", f"{self.path}: another process trains this run")

    def _remove_all_but_lock(self) -> None:
        """Removes what this process has begun; without the lock another one might begin while it does."""
        for path in self.path.iterdir():
            if path.name != ".lock" and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != ".lock":
                path.unlink()

    def _remove_torn(self) -> None:
        remove_torn(self.path)
        remove_torn(self.checkpoints)


def read_early_end(run: Path) -> str | None:
    """Returns why a run that is done ended before its planned steps, None if it did not, or is not done."""
    done = run / "DONE"
    facts = read_sealed(done) if done.is_file() else {}
    return facts.get("ended_early")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Returns what a run's folder has logged, without a last line that a kill tore; nothing if it has not yet.

    Raises:
        ValueError: The run is done, and the file is not the one that it ended with.
    """
    path = run / METRICS
    check_run_file(run, METRICS)
    records = read_whole_lines(path) if path.is_file() else []
    for number, record in enumerate(records, start=1):
        if type(record.get("step")) is not int:
            raise ValueError(
                f"{path}:{number}: is no line of metrics: it has no step; delete it, or take the whole run"
            )
    return records


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested configuration's values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
