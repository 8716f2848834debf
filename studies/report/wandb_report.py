"""The report in Weights & Biases: its text and tables, its pictures, and panels over the study's own runs."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as reports
from wandb_workspaces import expr

from datamodules.text.plain_text import clean_line, shorten
from studies.report.document import Block, Browser, Figure, HeatMap, Parallel, Report, Sample, Text
from studies.report.escaping import markup_markdown
from studies.report.markdown import format_browser, format_captioned, format_facts, format_sample
from studies.report.pictures import draw

ACCURACY = "test/accuracy_neutral"
# What W&B takes.
TITLE_LENGTH = 128
_WIDE, _HALF = reports.Layout(w=24, h=12), reports.Layout(w=12, h=10)


class WandbReport:
    """Builds the report; nothing needs the network before `publish`.

    Args:
        report: What it says.
        group: The W&B group of the study's runs.
        sweeps: Groups of further runs, which differ in their loss weights.
        entity: Whose project it is.
        project: The project of the study's runs.
    """

    def __init__(self, report: Report, group: str, sweeps: list[str], entity: str, project: str):
        self.report, self.group, self.sweeps = report, group, sweeps
        self.entity, self.project = entity, project

    def build(self) -> reports.Report:
        """Returns the report as wandb-workspaces has it, which checks every part."""
        blocks: list[Any] = [reports.TableOfContents()]
        blocks.append(reports.MarkdownBlock(format_facts(self.report)))
        for section in self.report.sections:
            blocks.append(reports.H1(section.title))
            for block in section.blocks:
                blocks += self._convert(block)
            if panels := self._find_panels(section.title):
                blocks.append(panels)
        blocks.append(reports.P(clean_line(self.report.footer)))
        return reports.Report(
            entity=self.entity,
            project=self.project,
            title=shorten(clean_line(self.report.title), TITLE_LENGTH),
            description=clean_line(self.report.lead),
            width="fluid",
            blocks=blocks,
        )

    def dump(self) -> dict[str, Any]:
        """Returns the report as W&B stores it."""
        spec = self.build()._to_model().spec
        dumped: dict[str, Any] = json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))
        return dumped

    def publish(self, folder: Path) -> str:
        """Sends the pictures, as a run of the study's group, and the report; returns the report's address.

        Args:
            folder: Where W&B keeps the run.
        """
        experiment = wandb.init(
            entity=self.entity,
            project=self.project,
            group=self.group,
            name=f"report of {self.group}",
            job_type="report",
            dir=folder.absolute(),
            mode="offline" if os.environ.get("WANDB_MODE") == "offline" else "online",
            settings=wandb.Settings(silent=True),
        )
        with tempfile.TemporaryDirectory() as pictures:
            for figure in self._figures():
                path = Path(pictures) / f"{figure.name}.png"
                draw(figure, self.report.families, path)
                experiment.log({f"report/{figure.name}": wandb.Image(str(path))})
            experiment.finish()
        address: str = self.build().save().url
        return address

    def _figures(self) -> list[Figure | HeatMap | Parallel]:
        blocks = [block for section in self.report.sections for block in section.blocks]
        return [block for block in blocks if isinstance(block, Figure | HeatMap | Parallel)]

    def _convert(self, block: Block) -> list[Any]:
        if isinstance(block, Text):
            if block.is_warning:
                return [reports.CalloutBlock(clean_line(block.text))]
            return [reports.MarkdownBlock(markup_markdown(block.text))]
        if isinstance(block, Sample):
            return [reports.MarkdownBlock(format_sample(block))]
        if isinstance(block, Figure | HeatMap | Parallel):
            picture = reports.MediaBrowser(media_keys=[f"report/{block.name}"], num_columns=1, layout=_WIDE)
            return [self._grid("pictures", "report", [picture]), reports.MarkdownBlock(markup_markdown(block.caption))]
        if isinstance(block, Browser):
            return [reports.MarkdownBlock(format_browser(block))]
        return [reports.MarkdownBlock(format_captioned(block))]

    def _grid(self, name: str, job_type: str, panels: list[Any], groupby: list[str] | None = None) -> Any:
        """Returns panels over the study's runs of one kind."""
        # Entity and project are the report's: with them the runset would ask the server.
        filters = expr.And(expr.Metric("Group").isin([self.group, *self.sweeps]), expr.Metric("JobType") == job_type)
        return reports.PanelGrid(
            runsets=[reports.Runset(name=name, filters=filters, groupby=groupby or [])], panels=panels
        )

    def _find_panels(self, section: str) -> Any | None:
        """Returns what W&B itself can draw of a section, live."""
        config, summary = reports.Config, reports.SummaryMetric
        if section == "Accuracy":
            panel = reports.BarPlot(title="accuracy", metrics=[ACCURACY], layout=_WIDE)
            return self._grid("evaluations", "evaluate", [panel], ["config.supervision", "config.teacher_family"])
        if section == "Learning curves":
            lines = [
                reports.LinePlot(
                    title=metric, x="trainer/global_step", y=[metric], log_y="ce" in metric, smoothing_type="none",
                    groupby_aggfunc="mean", groupby_rangefunc="minmax", layout=_HALF,
                )
                for metric in ("train/ce_rationale", "train/ce_answer", "train/agreement_rationale",
                               "train/student_entropy_rationale", "train/gradient_norm", "train/loss")
            ]  # fmt: skip
            return self._grid("runs", "fit", lines, ["config.student_family", "config.teacher_family"])
        if section == "Loss weights":
            column = reports.ParallelCoordinatesPlotColumn
            names = ("kl_weight", "temperature", "divergence", "student_family")
            parallel = reports.ParallelCoordinatesPlot(
                columns=[*(column(config(name)) for name in names), column(summary(ACCURACY))], layout=_HALF
            )
            scatter = reports.ScatterPlot(
                x=config("kl_weight"), y=config("temperature"), z=summary(ACCURACY), layout=_HALF
            )
            return self._grid("evaluations", "evaluate", [parallel, scatter])
        return None
