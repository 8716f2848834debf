"""Stage 1: a teacher answers questions with a chain of thought.

    python -m scripts.annotate --config configs/experiments/obqa_smollm2.yaml
    python -m scripts.annotate summary FILE... [--questions SOURCE] [--png FILE]
    python -m scripts.annotate tasks

The first writes a rationale store (parquet). Interrupted, it continues where it was; `--help` lists every setting, and
`--dry-run` prints the prompts and asks nothing. `summary` compares the teachers of stores and published collections;
`tasks` lists the tasks.
"""

from scripts.common.front import answer_early

if __name__ == "__main__":
    answer_early("annotate", __file__)

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.annotation import QuestionDataModule
from datamodules.files.record_log import refuse_other_records
from datamodules.logit_cache.writer import refuse_other_folder
from datamodules.provenance import describe_creation
from datamodules.rationales.store import Rationale, write_rationales
from datamodules.tasks.benchmarks import format_tasks
from lightning_modules.run.progress import bar_options
from lightning_modules.run.stop_signal import leave
from lightning_modules.run.writers import RecordWriter
from lightning_modules.teacher.annotator import Annotator

# Imported, so that `--model.backend` knows them by name.
from lightning_modules.teacher.openai_backend import OpenAIBackend  # noqa: F401
from lightning_modules.teacher.vllm_backend import VLLMBackend  # noqa: F401
from scripts.common.annotate_cli import AnnotateCLI
from scripts.common.endings import describe_rationales
from scripts.common.entry import run_main
from scripts.common.kept_log_probs import name_cache, write_kept
from studies.inputs.rationale_quality import summarize


def parse(args: list[str] | None = None) -> AnnotateCLI:
    """Checks the whole command line and config, and loads nothing."""
    return AnnotateCLI("annotate", Annotator, QuestionDataModule, "teacher", args)


def main(args: list[str] | None = None) -> None:
    """Annotates, or runs the subcommand that the first argument names."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["summary"]:
        summarize(args[1:])
        return
    if args[:1] == ["tasks"]:
        print(format_tasks())
        return
    cli = parse(args)
    output, config = Path(cli.config.output), cli.result_config()
    with cli.claim_output(config) as is_needed:
        if is_needed:
            annotate(cli, output, config, args)


def annotate(cli: AnnotateCLI, output: Path, config: dict[str, Any], args: list[str]) -> None:
    """Asks for what is missing, and writes the store once all is there."""
    data, teacher = cli.datamodule, cli.model

    def finish(records: list[dict[str, Any]]) -> None:
        found = [(record["question_id"], record["sample"]) for record in records]
        refuse_other_records(output, found, data.find_asked(), cli.asks_for_all)
        order = {identifier: index for index, identifier in enumerate(data.posed)}
        records.sort(key=lambda record: (order[record["question_id"]], record["sample"]))
        revisions = sorted({record.pop("revision") for record in records})
        if len(revisions) > 1:
            print(f"warning: {output}: several versions answered: {', '.join(revisions)}", file=sys.stderr)
        metadata = {
            "teacher": records[0]["teacher"],
            "revision": " | ".join(revisions),
            "tokenizer_fingerprint": data.fingerprint,
            "prompt": vars(data.prompt),
            "decoding": {**vars(teacher.decoding), "num_samples": teacher.num_samples},
            "backend": type(teacher.backend).__name__,
            "num_records": len(records),
            "creation": describe_creation(config),
        }
        if data.rewrites is not None and data.originals_saw_gold is not None:
            metadata["gold_conditioned"] = {records[0]["teacher"]: data.originals_saw_gold}
        packed = [record.pop("tokens") for record in records if "tokens" in record]
        rationales = [Rationale(**record) for record in records]
        if teacher.log_probs is not None:
            # Before the store, after which nothing is asked again.
            print(write_kept(name_cache(output), teacher, rationales, packed, metadata))
        write_rationales(output, rationales, metadata)
        print(describe_rationales(output, rationales, teacher.backend.is_local, args))

    if teacher.log_probs is not None:
        refuse_other_folder(name_cache(output))
    writer = RecordWriter(output, config, finish)
    data.done = {(record["question_id"], record["sample"]) for record in writer.records.collect()}
    if teacher.backend.takes_text:
        data.tokenizer_name = None
    data.setup("predict")
    teacher.prepare(data)
    if cli.config.dry_run:
        # Before the check, so that it needs no key.
        print(data.describe_missing())
        return
    teacher.check(data)
    if teacher.backend.is_local:
        cli.trainer.callbacks.append(writer)
        cli.launch("predict", teacher, data, return_predictions=False)
    elif cli.trainer.world_size > 1:
        raise ValueError("this backend answers one process, which would ask everything again in each: start only one")
    else:
        ask(data, teacher, writer)


def ask(data: QuestionDataModule, teacher: Annotator, writer: RecordWriter) -> None:
    """Annotates with a backend that needs no trainer; it yields less than all where this process is to stop."""
    missing, answered = data.find_missing(), 0
    writer.records.open()
    teacher.backend.load(teacher.source, data.tokenizer)
    try:
        for record in tqdm(teacher.annotate(data, missing), total=len(missing), unit="answers", **bar_options()):
            writer.records.append([record])
            answered += 1
    finally:
        if summary := teacher.backend.summarize():
            print(summary)
    if answered < len(missing):
        leave(f"after {answered} of {len(missing)} requests")
    writer.records.merge()


if __name__ == "__main__":
    run_main(main, __file__)
