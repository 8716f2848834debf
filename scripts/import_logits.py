"""Imports the distributions that DistillKit captured into a logit cache.

    python -m scripts.import_logits captured/ --teacher Qwen/Qwen2.5-7B-Instruct --dtype bfloat16 \
        --questions mine.jsonl --rationales mine.jsonl --prompt plain --output data/mine/qwen-logits

A captured text is a rationale's where it begins with the prompt and the rationale in the teacher's tokens, as
`cache_logits` gives them. With `--write_rationales FILE --writer NAME`, the texts give the rationales, too. `fit` then
needs the same questions, rationales, prompt and template options. The capture's settings are read from
`compression_config.yaml` beside it. Only temperature 1 is known. Interrupted, it continues after its last shard.
"""

import argparse
from pathlib import Path
from typing import get_args

from datamodules.files.command_line import CommandLine
from datamodules.logit_cache.format import Dtype
from scripts.common.entry import run_main


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line.

    Raises:
        ValueError: It is wrong.
    """
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", nargs="+", type=Path, help="parquet files, or folders of them")
    parser.add_argument("--compression", type=Path, help="their compression config; compression_config.yaml beside")
    parser.add_argument("--teacher", required=True, help="hub id or local folder of the model that was captured")
    parser.add_argument("--revision", help="commit of a hub teacher")
    parser.add_argument("--dtype", required=True, choices=get_args(Dtype), help="in which it was run")
    parser.add_argument("--questions", required=True, help="task:NAME:SPLIT[:LANGUAGE][@FOLDER], or a file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rationales", nargs="+", help="the captured rationales' stores, or files of them")
    source.add_argument("--write_rationales", type=Path, help="store (parquet) of the rationales that the texts hold")
    parser.add_argument("--writer", help="who wrote the texts of --write_rationales, which no capture says")
    parser.add_argument("--prompt", default="instruction", help="the prompt that the teacher read")
    parser.add_argument("--template_options", default="{}", help="what its chat template was told, as JSON")
    parser.add_argument("--keep_thinking", action="store_true", help="rationales begin with what was thought")
    parser.add_argument("--output", type=Path, required=True, help="the cache (a folder)")
    parsed = parser.parse_args(args)
    if (parsed.write_rationales is None) != (parsed.writer is None):
        parser.error("--writer and --write_rationales belong together")
    return parsed


def main(args: list[str] | None = None) -> None:
    """Imports, and prints what was of use."""
    parsed = parse(args)
    # It imports torch and transformers, which neither help nor a typo need wait for.
    from scripts.common.logit_import import import_logits

    for line in import_logits(parsed):
        print(line)


if __name__ == "__main__":
    run_main(main, __file__)
