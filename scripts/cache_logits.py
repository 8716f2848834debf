"""Stage 2: a teacher reads each (prompt, rationale) once and stores its sparse next-token distributions.

    python -m scripts.cache_logits --config configs/experiments/obqa_smollm2.yaml

Writes a logit cache (a folder). Interrupted, it continues after its last complete shard.

    python -m scripts.cache_logits inspect DIR [--png FILE] [--verify]
    python -m scripts.cache_logits inspect DIR --teacher MODEL --questions SOURCE --rationales FILE ...

prints what a cache holds, and with the last how far it is from its teacher, which reads a sample again.
"""

from scripts.common.front import answer_early

if __name__ == "__main__":
    answer_early("cache_logits", __file__)

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from datamodules.distillation import RationaleDataModule
from datamodules.files.command_line import CommandLine
from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.writer import LogitCacheWriter, refuse_other_folder
from lightning_modules.run.writers import CacheWriter
from lightning_modules.teacher.teacher import LogitScorer
from scripts.common.endings import describe_cache
from scripts.common.entry import run_main
from scripts.common.predict_cli import PredictCLI
from studies.inputs.cache_report import inspect_cache, measure_error


class CacheCLI(PredictCLI):
    """A prediction into shards."""

    output_ending = None

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--rows_per_shard`."""
        super().add_arguments_to_parser(parser)
        help_text = "A shard is written when it has so many rows; a kill loses the rows of an unwritten one."
        parser.add_argument("--rows_per_shard", type=PositiveInt, default=50_000, help=help_text)


def parse(args: list[str] | None = None) -> CacheCLI:
    """Checks the whole command line and config, and loads nothing."""
    return CacheCLI("cache_logits", LogitScorer, RationaleDataModule, "teacher", args)


def main(args: list[str] | None = None) -> None:
    """Caches logits, or runs the subcommand `inspect`."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["inspect"]:
        inspect(args[1:])
        return
    cli = parse(args)
    output, data, teacher = Path(cli.config.output), cli.datamodule, cli.model
    refuse_other_folder(output)
    data.setup("predict")
    teacher.check(data)
    made = teacher.describe(data.fingerprint, data.prompt.id, len(data.tokenizer))
    writer = LogitCacheWriter(output, made, rows_per_shard=cli.config.rows_per_shard)
    data.done = writer.find_done()
    num_before = len(data.done)
    left = [example for example in data.examples if example.id not in data.done]
    if not left and writer.is_complete():
        LogitCache(output).check(teacher.teacher_name, data.tokenizer, data.prompt.id, data.examples)
        writer.clear()
        print(f"{output}: complete already")
        return
    cli.trainer.callbacks.append(CacheWriter(writer, cli.result_config()))
    # A process that fails gives its part of the folder back, too.
    with closing(writer):
        cli.launch("predict", teacher, data, return_predictions=False)
    if cli.trainer.is_global_zero:
        print(describe_cache(output, data, num_before, args))


def inspect(args: list[str]) -> None:
    """Prints what a cache holds."""
    parser = CommandLine(prog="python -m scripts.cache_logits inspect")
    parser.add_argument("folder", type=Path, help="the cache")
    parser.add_argument("--png", type=Path, help="histograms")
    parser.add_argument("--verify", action="store_true", help="read every byte of every file first")
    parser.add_argument("--questions", help="the questions' source, for their tasks")
    parser.add_argument("--teacher", help="run this teacher again on a sample; needs --questions and --rationales")
    parser.add_argument("--revision", help="commit of a hub teacher")
    parser.add_argument("--rationales", nargs="+", help="rationale stores and published collections")
    parser.add_argument("--shown_rationales", help="of a prompt that showed the teacher rationales, their file")
    parser.add_argument("--sample", type=int, default=32, help="how many examples the teacher reads again")
    given = parser.parse_args(args)
    if bool(given.teacher) != bool(given.rationales) or (given.teacher and not given.questions):
        raise ValueError("--teacher, --questions and --rationales belong together")
    cache = LogitCache(given.folder)
    if given.verify:
        cache.verify()
    report = inspect_cache(cache, given.questions)
    if given.teacher:
        report.rows["KL(teacher, cache) of a sample (nats)"] = measure_error(
            cache, given.teacher, given.revision, given.questions, given.rationales, given.sample,
            given.shown_rationales,
        )  # fmt: skip
    print(report)
    if given.png:
        report.plot(given.png)


if __name__ == "__main__":
    run_main(main, __file__)
