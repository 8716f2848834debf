r"""Exports a student to where people are: checked, or not written at all.

    python -m scripts.export gguf --model.student runs/GROUP/ID/student --types f16,Q8_0,Q4_K_M \
        --calibration data/rationales.parquet --output exported
    python -m scripts.export web --model.student exported/student-Q4_K_M.gguf --output page

`gguf` writes files that llama.cpp runs on ordinary machines. Weights are rounded so that what the student's training
rationales use most is kept best. Questions, prompt and rationales are the run's own, where the student lies in a run's
folder. A folder appears that holds a file of each type and `card.json`.

`web` writes a folder that any web server can serve: a page in which such a file answers questions, in the browser and
without a network.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from datamodules.files.atomic import check_place
from datamodules.files.command_line import CommandLine, parse_count
from datamodules.files.parsing import read_yaml
from datamodules.tasks.prompts import get_prompt
from scripts.common.entry import quiet_libraries, run_main
from scripts.common.run_results import read_results


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="format", required=True)
    shared = CommandLine(add_help=False)
    what = "folder, checkpoint or hub id; for `web`, a GGUF file"
    shared.add_argument("--model.student", dest="student", required=True, help=what)
    shared.add_argument("--output", type=Path, required=True, help="the folder, which must not be there")
    gguf = formats.add_parser("gguf", parents=[shared], help="files for llama.cpp")
    gguf.add_argument("--types", default="f16,Q8_0,Q4_K_M", help="f32, f16, bf16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0")
    what = "training rationales; what it learned from in its run by default"
    gguf.add_argument("--calibration", nargs="+", metavar="FILE", help=what)
    gguf.add_argument("--calibration_examples", type=parse_count, default=128, help="of them, at most (128)")
    what = "longest of them that is read, in tokens with its prompt (512)"
    gguf.add_argument("--calibration_length", type=parse_count, default=512, help=what)
    what = "the run's own by default, and without --calibration"
    gguf.add_argument("--questions", help=f"the training questions; {what}")
    gguf.add_argument("--prompt", help=f"how the student is asked; {what}")
    gguf.add_argument("--llama_cpp", type=Path, help="a checkout of llama.cpp, whose converter is to be used")
    what = "of the greedy texts that are compared (64)"
    gguf.add_argument("--max_new_tokens", type=parse_count, default=64, help=what)
    web = formats.add_parser("web", parents=[shared], help="a page that runs such a file in a browser")
    folder = Path("node_modules/@wllama/wllama")
    what = "the folder of the npm package @wllama/wllama, llama.cpp for browsers (%(default)s)"
    web.add_argument("--runtime", type=Path, default=folder, help=what)
    what = "that of @wllama/wllama-compat, for browsers such as Safari; left out by default"
    web.add_argument("--compat", type=Path, help=what)
    web.add_argument("--prompt", help="how the student is asked; what the file's card says by default")
    web.add_argument("--max_new_tokens", type=parse_count, default=256, help="of an answer (256)")
    return parser.parse_args(sys.argv[1:] if args is None else args)


def read_run(student: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the data section of the run that a student lies in, and its results; nothing of another folder."""
    run = Path(student).absolute().parent
    config = run / "config.yaml"
    content = read_yaml(config) if config.is_file() and (run / "DONE").is_file() else {}
    results = {task: own.get("accuracy_neutral") for task, own in read_results(run).items()} if content else {}
    return content.get("data", {}) if isinstance(content, dict) else {}, results


def write_gguf(given: argparse.Namespace) -> None:
    """Writes files for llama.cpp, and says what was found."""
    # gguf is an optional extra.
    from lightning_modules.export.card import CARD, describe_run, find_prompt
    from lightning_modules.export.gguf_export import Calibration, export_gguf, is_exported, refuse_used
    from lightning_modules.export.quantization import TYPES

    types = list(dict.fromkeys(name.strip() for name in given.types.split(",")))
    if unknown := [name for name in types if name not in TYPES]:
        raise ValueError(f"--types: {unknown[0]!r} is unknown; there are: {', '.join(TYPES)}")
    check_place(given.output)
    if not (given.output / CARD).is_file():
        refuse_used(given.output)
    quiet_libraries()
    data, results = read_run(given.student)
    questions = given.questions or data.get("questions")
    if given.calibration is None and (given.questions or given.prompt):
        raise ValueError("--questions and --prompt go with --calibration; without it the run's own count")
    if given.calibration is not None and questions is None:
        raise ValueError("--questions: name the training questions, since the student lies in no run's folder")
    prompt = find_prompt(describe_run(data), given.prompt) or get_prompt("cot")
    questions = questions or []
    numbers = given.calibration_examples, given.max_new_tokens, given.calibration_length
    calibration = Calibration(questions, given.calibration, prompt, *numbers)
    if is_exported(given.output, given.student, types, calibration, given.llama_cpp):
        print(f"{given.output}: complete already")
        return
    refuse_used(given.output)
    card = export_gguf(given.student, types, calibration, given.output, given.llama_cpp, results)
    for name, own in card["files"].items():
        greedy = f", {own['greedy_equal']} of {own['prompts']} greedy texts equal" if "prompts" in own else ""
        print(
            f"{given.output / name}: {own['bytes']:,} bytes, KL {own['kl']:.4f} nats a token, "
            f"{own['top1_agreement']:.1%} of {own['tokens']} tokens alike, {own['texts_equal']} texts read alike"
            + greedy
        )


def write_web(given: argparse.Namespace) -> None:
    """Writes a page's folder, and says how it is opened."""
    from lightning_modules.export.gguf_export import refuse_used
    from lightning_modules.export.web_page import STUDENT, collect_page, is_written, write_page

    check_place(given.output)
    if not (given.output / STUDENT).is_file():
        refuse_used(given.output)
    quiet_libraries()
    page = collect_page(given.student, given.prompt, given.runtime, given.compat, given.max_new_tokens)
    if is_written(page, given.output):
        print(f"{given.output}: complete already")
        return
    size = write_page(page, given.output)
    print(f"{given.output}: {size:,} bytes; try it: python -m http.server --directory {shlex.quote(str(given.output))}")


def main(args: list[str] | None = None) -> None:
    """Exports."""
    given = parse(args)
    {"gguf": write_gguf, "web": write_web}[given.format](given)


if __name__ == "__main__":
    run_main(main, __file__)
