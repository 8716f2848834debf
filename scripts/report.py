"""Stage 6: shows what a study found, and sends Weights & Biases what it has not seen yet.

    python -m scripts.report html runs/microworld              # one page: report.html
    python -m scripts.report markdown runs/microworld          # report.md, and its pictures
    python -m scripts.report wandb runs/microworld --publish   # a report in Weights & Biases; without, as JSON
    python -m scripts.report sync runs --dry-run               # what of the offline runs is to be uploaded

`--sweep runs/GROUP` adds runs that differ in their loss weights; `html runs/GROUP` reports a sweep alone.
"""

import argparse
import os
import sys
from pathlib import Path

from datamodules.files.command_line import CommandLine
from lightning_modules.tracking.wandb_files import sync
from scripts.common.entry import run_main


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the command and its settings."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    study = CommandLine(add_help=False)
    study.add_argument("folder", type=Path, help="runs/STUDY, or runs/GROUP of a sweep")
    study.add_argument("--sweep", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders of further runs")
    commands.add_parser("html", parents=[study], help="one page that needs no network")
    commands.add_parser("markdown", parents=[study], help="Markdown with pictures")
    shared = commands.add_parser("wandb", parents=[study], help="a report in Weights & Biases")
    shared.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="team or user; or set WANDB_ENTITY")
    shared.add_argument("--project", default="kindred", help="where the study's runs are (default: %(default)s)")
    shared.add_argument("--publish", action="store_true", help="send it; upload the runs with `sync` first")
    uploading = commands.add_parser("sync", help="upload the offline runs of W&B that are pending, in order, once")
    uploading.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="where the runs are")
    uploading.add_argument("--dry-run", action="store_true", help="say what would be uploaded")
    uploading.add_argument("--include-open", action="store_true", help="also runs that have not ended")
    return parser.parse_args(sys.argv[1:] if args is None else args)


def main(args: list[str] | None = None) -> None:
    """Does what the command says, and prints what it wrote."""
    settings = parse(args)
    # What takes seconds to import, after what is answered at once.
    from studies.report import write_html, write_markdown, write_wandb

    if settings.command == "sync":
        print(sync(settings.folder, settings.dry_run, settings.include_open))
    elif settings.command == "html":
        print(write_html(settings.folder, settings.sweep))
    elif settings.command == "markdown":
        print(write_markdown(settings.folder, settings.sweep))
    else:
        if not settings.entity:
            raise ValueError("name the team or user of the W&B project with --entity or WANDB_ENTITY")
        print(write_wandb(settings.folder, settings.sweep, settings.entity, settings.project, settings.publish))


if __name__ == "__main__":
    run_main(main, __file__)
