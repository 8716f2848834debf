"""Stage 4: a student answers questions; its predictions are kept, and its accuracy printed with an interval.

    python scripts/evaluate.py --config configs/experiments/obqa_smollm2.yaml --model.student runs/.../student

Writes predictions (parquet). Interrupted, it continues where it was.
"""

from lightning_modules.stop_signal import StopListener

if __name__ == "__main__":
    # Before the imports that take seconds, in which a signal would end the process.
    StopListener().listen()

from pathlib import Path

from datamodules.generation import QuestionDataModule
from datamodules.provenance import describe_creation
from datamodules.rationales import write_table
from lightning_modules.evaluation import PREDICTION_SCHEMA, Evaluator
from lightning_modules.pretrained import identify_weights
from lightning_modules.writers import RecordWriter
from scripts.annotate import refuse_other_output
from scripts.stage_cli import PredictCLI, run_main
from studies.statistics import wilson_interval


def summarize(records: list[dict]) -> str:
    """Returns accuracy (with its 95 % Wilson interval) and extraction rate, a line for each way to answer."""
    lines = []
    graded = [record for record in records if record["gold"] is not None]
    for name in ("neutral", "paper", "likelihood"):
        if not graded or (name == "likelihood" and graded[0]["answer_likelihood"] is None):
            continue
        correct = sum(record[f"correct_{name}"] for record in graded)
        extracted = sum(record[f"answer_{name}"] is not None for record in graded)
        low, high = wilson_interval(correct, len(graded))
        lines.append(
            f"{name:10} accuracy {correct / len(graded):6.1%} [{low:.1%}, {high:.1%}]  n={len(graded)}  "
            f"answers found {extracted / len(graded):.1%}"
        )
    return "\n".join(lines)


def parse(args: list[str] | None = None) -> PredictCLI:
    """Checks the whole command line and config, and loads nothing."""
    return PredictCLI("evaluate", Evaluator, QuestionDataModule, "student", args)


def main(args: list[str] | None = None) -> None:
    """Evaluates."""
    cli = parse(args)
    data, student = cli.datamodule, cli.model
    data.setup("predict")
    student.check(data)
    # A student folder may have been trained anew under the same name.
    weights = identify_weights(student.student, student.student_revision)
    output, config = Path(cli.config.output), {**cli.result_config(), "weights": weights}
    if refuse_other_output(output, config):
        return

    def finish(records: list[dict]) -> None:
        order = {identifier: number for number, identifier in enumerate(data.posed)}
        records.sort(key=lambda record: order[record["question_id"]])
        metadata = {
            "student": student.student,
            "weights": weights,
            "prompt": vars(data.prompt),
            "creation": describe_creation(config),
        }
        write_table(output, records, metadata, PREDICTION_SCHEMA)
        print(f"{output}: {len(records)} predictions\n{summarize(records)}")

    writer = RecordWriter(output, config, finish)
    data.done = {(record["question_id"], 0) for record in writer.records.collect()}
    cli.trainer.callbacks.append(writer)
    cli.trainer.predict(student, data, return_predictions=False)


if __name__ == "__main__":
    run_main(main)
