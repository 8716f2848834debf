"""Shows what Kindred understands of a file of questions and rationales, before anything is trained on it.

    python -m scripts.inspect_data mine.jsonl
    python -m scripts.inspect_data mine.jsonl --tokenizer configs/models/microworld/a-student --prompt plain
    python -m scripts.inspect_data rationales.jsonl --questions task:openbookqa:train

Fields that are read and ignored, counts, lengths, what each filter would leave, and three examples as a student reads
them. Records that cannot be used are counted and named; the stages refuse a file that has some.
"""

import argparse
import sys

from datamodules.files.command_line import CommandLine, parse_count
from datamodules.tasks.prompts import get_prompt
from scripts.common.entry import run_main


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="jsonl, jsonl.gz, json or parquet")
    parser.add_argument("--questions", help="where the rationales' questions are; the file itself by default")
    parser.add_argument("--tokenizer", help="hub id, local folder or GGUF file, for lengths in tokens")
    parser.add_argument("--prompt", default="instruction", help="cot, few_shot, direct, instruction or plain")
    parser.add_argument("--max_length", type=parse_count, default=1024, help="longest example in tokens")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Prints the report."""
    parsed = parse(args)
    # They import torch and transformers, which neither help nor a typo need wait for.
    from datamodules.examples.tokenization import load_tokenizer
    from studies.inputs.data_report import add_examples, add_filters, inspect_file

    prompt = get_prompt(parsed.prompt)
    tokenizer = None if parsed.tokenizer is None else load_tokenizer(parsed.tokenizer)
    report = inspect_file(parsed.file, parsed.questions)
    add_filters(report)
    add_examples(report, tokenizer, prompt, parsed.max_length)
    print(report.format(sys.stdout.isatty()))


if __name__ == "__main__":
    run_main(main, __file__)
