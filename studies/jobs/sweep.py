"""A sweep: arms that differ in settings of one experiment's fit, from a small declarative grid."""

import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from datamodules.files.atomic import check_name, hash_json
from datamodules.files.parsing import read_yaml
from lightning_modules.evaluation.metrics import read_accuracy
from lightning_modules.run.folder import read_metrics
from studies.jobs.job import Job, format_settings
from studies.text_table import format_records

Settings = dict[str, Any]
Values = dict[str, list[Any]]
Rows = list[Settings]
Args = list[str]
Jobs = list[Job]


@dataclass(frozen=True)
class Sweep:
    """The arms: each row of `zip` with each combination of `product`, and those of `list`; all with each seed.

    A setting is named as on fit's command line: `model.loss.kl_weight`.

    Attributes:
        config: The experiment's file, whose sections the arms share.
        group: Names the folder of the arms' runs.
        fixed: Settings of every arm.
        product: Values of settings, all crossed.
        zip: Values of settings, as many of each: the first go together, the second go together, and so on.
        list: Settings of further arms, written out.
        seeds: Number of training seeds of each.
        at_most: Arms that run at a time on a cluster.
        root: Folder of all runs.
    """

    config: str
    group: str
    fixed: Settings = field(default_factory=dict)
    product: Values = field(default_factory=dict)
    zip: Values = field(default_factory=dict)
    list: Rows = field(default_factory=list)
    seeds: PositiveInt = 1
    at_most: PositiveInt = 8
    root: str = "runs"

    def __post_init__(self) -> None:
        check_name("sweep.group", self.group)
        if not Path(self.config).is_file():
            raise ValueError(f"sweep.config: no such file: {self.config}")
        if len({len(values) for values in self.zip.values()}) > 1:
            lengths = ", ".join(f"{len(values)} of {name}" for name, values in self.zip.items())
            raise ValueError(f"sweep.zip: needs as many values of each setting; there are {lengths}")
        if empty := [name for name, values in {**self.product, **self.zip}.items() if not values]:
            raise ValueError(f"sweep: {empty[0]} has no values")
        if not (self.product or self.zip or self.list):
            raise ValueError("sweep: there are no arms: give product, zip or list")
        seeds = ["seed_everything", "data.batches.order_seed"] if self.seeds > 1 else []
        for places in [[*self.product, *self.zip], *self.list]:
            names = [*self.fixed, *seeds, *places]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"sweep: {twice[0]} is set in two places")

    @property
    def folder(self) -> Path:
        """The folder of the arms' runs."""
        return Path(self.root) / self.group

    def sections(self) -> dict[str, dict[str, Any]]:
        """Returns the experiment's sections by stage."""
        content = read_yaml(Path(self.config))
        if not isinstance(content, dict) or not {"fit", "evaluate"} <= set(content):
            raise ValueError(f"{self.config}: a sweep needs an experiment's file with the sections fit and evaluate")
        return content

    def arms(self) -> dict[str, Settings]:
        """Returns each arm's settings by its id: a hash of them and of the section that they change.

        Raises:
            ValueError: Two arms are the same.
        """
        fit, arms = self.sections()["fit"], dict[str, Settings]()
        rows = [dict(zip(self.zip, values, strict=True)) for values in zip(*self.zip.values(), strict=True)] or [{}]
        crossed = [dict(zip(self.product, values, strict=True)) for values in product(*self.product.values())]
        combined = [row | combination for row, combination in product(rows, crossed)]
        written = [*(combined if self.product or self.zip else []), *self.list]
        for chosen, seed in product(written, range(self.seeds)):
            seeds = {"seed_everything": seed, "data.batches.order_seed": seed} if self.seeds > 1 else {}
            settings = {**self.fixed, **chosen, **seeds}
            identifier = hash_json([fit, settings])[:8]
            if identifier in arms:
                raise ValueError(f"sweep: two arms are the same: {json.dumps(settings)}")
            arms[identifier] = settings
        return arms

    def varied(self) -> Rows:
        """Returns what differs between the arms, arm by arm, with the last part of each setting's name."""
        arms = self.arms().values()
        names = dict.fromkeys(name for settings in arms for name in settings if name != "data.batches.order_seed")
        varied = [name for name in names if len({json.dumps(settings.get(name)) for settings in arms}) > 1]
        short = {name: name.rsplit(".", 1)[1] if "." in name else name for name in varied}
        if len(set(short.values())) < len(short):
            short = dict(zip(varied, varied, strict=True))
        return [{short[name]: settings.get(name) for name in varied} for settings in arms]

    def predictions(self, arm: str) -> Path:
        """Returns where an arm's answers are."""
        return self.folder / "predictions" / f"{arm}.parquet"

    def jobs(self, grid: str) -> Jobs:
        """Returns all jobs, each after what it needs: the teacher's stages, if the experiment has them, and the arms.

        Args:
            grid: The sweep's own file, from which the last job makes the table.
        """
        sections, jobs = self.sections(), []
        if "annotate" in sections:
            output = sections["annotate"]["output"]
            jobs.append(Job("annotate", "annotate", [f"--config={self.config}"], output, []))
        if "cache_logits" in sections:
            done = f"{sections['cache_logits']['output']}/manifest.json"
            needs = [job.name for job in jobs]
            jobs.append(Job("cache_logits", "cache_logits", [f"--config={self.config}"], done, needs))
        teacher = [job.name for job in jobs]
        for arm, settings in self.arms().items():
            place = {"run.root": self.root, "run.group": self.group, "run.id": arm}
            run = self.folder / arm
            jobs.append(Job(f"fit-{arm}", "fit", self._command(settings | place), str(run / "DONE"), teacher))
            answers = {"model.student": str(run / "student"), "model.arm": arm, "output": str(self.predictions(arm))}
            args = self._command({**answers, "model.seed": settings.get("seed_everything", 0)})
            jobs.append(Job(f"evaluate-{arm}", "evaluate", args, answers["output"], [f"fit-{arm}"]))
        needs = [job.name for job in jobs if job.stage == "evaluate"]
        return [*jobs, Job("table", "sweep", [grid, "--table"], str(self.folder / "table.md"), needs)]

    def _command(self, settings: Settings) -> Args:
        return [f"--config={self.config}", *format_settings(settings)]

    def format_arms(self) -> str:
        """Returns a table of the arms, with what is known of each: the last validation and the test's accuracy."""
        rows = []
        for arm, varied in zip(self.arms(), self.varied(), strict=True):
            shown = {name: "" if value is None else str(value) for name, value in varied.items()}
            rows.append({"arm": arm, **shown, **self._find_results(arm)})
        return format_records(rows)

    def _find_results(self, arm: str) -> dict[str, str]:
        found = {"val/loss": "–", "test accuracy": "–"}
        for record in read_metrics(self.folder / arm):
            if "val/loss" in record:
                found["val/loss"] = f"{record['val/loss']:.4g}"
        if (share := read_accuracy(self.predictions(arm))) is not None:
            found["test accuracy"] = f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}] (n={share.n})"
        return found

    def to_wandb(self, grid: str) -> dict[str, Any]:
        """Returns the sweep as Weights & Biases takes it: its agents run the same arms, into the same folders."""
        return {
            "name": self.group,
            "project": self.sections()["fit"].get("run", {}).get("project", "kindred"),
            "method": "grid",
            "parameters": {"arm": {"values": [*self.arms()]}},
            "command": ["${env}", "python", "-m", "scripts.sweep", grid, "${args}"],
        }
