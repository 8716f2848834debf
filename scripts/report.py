"""Stage 6: shows what a study found, and sends Weights & Biases what it has not seen yet.

python scripts/report.py html runs/microworld
python scripts/report.py sync runs --dry-run
"""

import argparse
import sys
from pathlib import Path

from lightning_modules.wandb_files import sync
from scripts.stage_cli import run_main
from studies.report import write_html


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the command and its settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    uploading = commands.add_parser("sync", help="upload the offline runs of W&B that are pending, in order, once")
    uploading.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="where the runs are")
    uploading.add_argument("--dry-run", action="store_true", help="say what would be uploaded")
    uploading.add_argument("--include-open", action="store_true", help="also runs that have not ended")
    page = commands.add_parser("html", help="write the study as one page, report.html")
    page.add_argument("folder", type=Path, help="runs/STUDY")
    page.add_argument(
        "--sweep", type=Path, nargs="+", default=[], metavar="FOLDER", help="runs with other loss weights"
    )
    return parser.parse_args(sys.argv[1:] if args is None else args)


def main(args: list[str] | None = None) -> None:
    """Does what the command says."""
    settings = parse(args)
    if settings.command == "sync":
        print(sync(settings.folder, settings.dry_run, settings.include_open))
    else:
        print(write_html(settings.folder, settings.sweep))


if __name__ == "__main__":
    run_main(main)
