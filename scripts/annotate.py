"""Stage 1: a teacher answers questions with a chain of thought.

    python scripts/annotate.py --config configs/experiments/obqa_smollm2.yaml

Writes a rationale store (parquet). Interrupted, it continues where it was; `--help` lists every setting.
"""

from pathlib import Path

from datamodules.files import hash_json
from datamodules.generation import QuestionDataModule
from datamodules.provenance import describe_creation
from datamodules.rationales import Rationale, read_metadata, write_rationales
from lightning_modules.teacher import Annotator
from lightning_modules.writers import RecordWriter
from scripts.stage_cli import PredictCLI, run_main


def refuse_other_output(output: Path, config: dict) -> bool:
    """Says whether `output` is there already; raises a ValueError if another configuration wrote it."""
    if not output.exists():
        return False
    if read_metadata(output).get("creation", {}).get("config_hash") != hash_json(config):
        raise ValueError(f"{output}: exists, and was made with another configuration; choose another --output")
    print(f"{output}: complete already")
    return True


def parse(args: list[str] | None = None) -> PredictCLI:
    """Checks the whole command line and config, and loads nothing."""
    return PredictCLI("annotate", Annotator, QuestionDataModule, "teacher", args)


def main(args: list[str] | None = None) -> None:
    """Annotates."""
    cli = parse(args)
    output, config = Path(cli.config.output), cli.result_config()
    if refuse_other_output(output, config):
        return
    data, teacher = cli.datamodule, cli.model

    def finish(records: list[dict]) -> None:
        order = {identifier: number for number, identifier in enumerate(data.posed)}
        records.sort(key=lambda record: (order[record["question_id"]], record["sample"]))
        metadata = {
            "teacher": teacher.teacher_name,
            "revision": teacher.weights_id,
            "tokenizer_fingerprint": data.fingerprint,
            "prompt": vars(data.prompt),
            "decoding": {
                "max_new_tokens": teacher.max_new_tokens,
                "temperature": teacher.temperature,
                "num_samples": teacher.num_samples,
                "seed": config["seed_everything"],
            },
            "creation": describe_creation(config),
        }
        write_rationales(output, [Rationale(**record) for record in records], metadata)
        answered = sum(record["answer"] is not None for record in records)
        correct = sum(record["correct"] is True for record in records)
        truncated = sum(record["finish_reason"] == "length" for record in records)
        print(f"{output}: {len(records)} rationales, {answered} with an answer, {correct} right, {truncated} truncated")

    writer = RecordWriter(output, config, finish)
    data.done = {record["question_id"] for record in writer.collect()}
    data.setup("predict")
    teacher.check(data)
    cli.trainer.callbacks.append(writer)
    cli.trainer.predict(teacher, data, return_predictions=False)


if __name__ == "__main__":
    run_main(main)
