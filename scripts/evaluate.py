"""Stage 4: a student answers questions of any tasks; its predictions are kept, and its metrics printed.

    python -m scripts.evaluate --config configs/experiments/obqa_smollm2.yaml --model.student runs/.../student
    python -m scripts.evaluate metrics FILE...

The first writes predictions (parquet) and, beside them, `OUTPUT.metrics.json`, and prints what matters of them.
Interrupted, it continues where it was. `metrics` prints all metrics of finished predictions.
"""

from scripts.common.front import answer_early

if __name__ == "__main__":
    answer_early("evaluate", __file__)

import sys
from pathlib import Path
from typing import Any

from datamodules.evaluation import EvaluationDataModule
from datamodules.files.atomic import require_file, write_sealed
from datamodules.files.record_log import refuse_other_records
from datamodules.files.tables import read_table, write_table
from datamodules.provenance import describe_creation
from lightning_modules.evaluation.evaluator import Evaluator
from lightning_modules.evaluation.fidelity import LanguageIdentifier
from lightning_modules.evaluation.metrics import format_table, measure, to_json
from lightning_modules.evaluation.records import PREDICTION_SCHEMA, list_columns
from lightning_modules.model.pretrained import identify_weights
from lightning_modules.run.wandb_mode import choose_mode
from lightning_modules.run.writers import RecordWriter
from lightning_modules.tracking.wandb_logging import EvaluationLog, log_evaluation
from scripts.common.endings import describe_predictions
from scripts.common.entry import run_main
from scripts.common.predict_cli import PredictCLI


class EvaluateCLI(PredictCLI):
    """The stage's command line."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Adds `--bert_model`, `--language_fidelity` and `--wandb.*`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--bert_model", type=str | None, default=None, help="Local folder of BERTScore's model.")
        what = "Also measure how many rationales are in their question's language; needs py3langid."
        parser.add_argument("--language_fidelity", type=bool, default=False, help=what)
        parser.add_argument("--wandb", type=EvaluationLog, default=EvaluationLog())

    def result_config(self) -> dict[str, Any]:
        """Leaves out what else reads answers where nothing does, so that what was predicted before is still done."""
        config = super().result_config()
        if not config["model"]["more_extractors"]:
            del config["model"]["more_extractors"]
        return config


def parse(args: list[str] | None = None) -> EvaluateCLI:
    """Checks the whole command line and config, and loads nothing."""
    return EvaluateCLI("evaluate", Evaluator, EvaluationDataModule, "student", args)


def print_metrics(paths: list[str]) -> None:
    """Prints the metrics of finished predictions.

    Raises:
        ValueError: A file is missing, or holds no predictions.
    """
    if not paths:
        raise ValueError("metrics: name at least one file of predictions")
    for path in paths:
        table = read_table(require_file(Path(path), "predictions"))
        if missing := [name for name in PREDICTION_SCHEMA.names if name not in table.column_names]:
            raise ValueError(f"{path}: no predictions, or an earlier version's: without column {missing[0]}")
        try:
            print(f"{path}\n{format_table(measure(table.to_pylist()))}")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def main(args: list[str] | None = None) -> None:
    """Evaluates, or runs the subcommand that the first argument names."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["metrics"]:
        print_metrics(args[1:])
        return
    cli = parse(args)
    data, student, bert_model = cli.datamodule, cli.model, cli.config.bert_model
    if bert_model is not None and not Path(bert_model).is_dir():
        raise ValueError(f"--bert_model: no such folder: {bert_model}")
    if bert_model is not None and not data.reference_paths:
        raise ValueError("--bert_model is given without data.references, and would be ignored")
    settings = EvaluationLog(**cli.config.wandb.as_dict())
    if settings.enabled == "required":
        choose_mode(settings.enabled)
    data.setup("predict")
    student.check(data)
    load_identifier(cli)
    # A student folder may have been trained anew under the same name.
    weights = identify_weights(student.student, student.student_revision)
    output, config = Path(cli.config.output), {**cli.result_config(), "weights": weights}
    config["model"]["runtime"] = student.name_runtime()
    # The runtime says that it is used; its own settings change no answer.
    del config["model"]["vllm"]
    with cli.claim_output(config) as is_needed:
        if is_needed:
            evaluate(cli, output, config)


def load_identifier(cli: EvaluateCLI) -> LanguageIdentifier | None:
    """Returns what tells the language of rationales, if that is asked for.

    Raises:
        ValueError: It is not installed, or does not know a question's language.
    """
    if not cli.config.language_fidelity:
        return None
    return LanguageIdentifier({item.question.language for item in cli.datamodule.posed.values()})


def evaluate(cli: EvaluateCLI, output: Path, config: dict[str, Any]) -> None:
    """Asks for what is missing, and writes the predictions once all are there."""
    data, student, bert_model = cli.datamodule, cli.model, cli.config.bert_model
    settings = EvaluationLog(**cli.config.wandb.as_dict())

    def finish(records: list[dict[str, Any]]) -> None:
        refuse_other_records(output, [record["question_id"] for record in records], [*data.posed], cli.asks_for_all)
        order = {identifier: index for index, identifier in enumerate(data.posed)}
        records.sort(key=lambda record: order[record["question_id"]])
        metadata = {
            "student": student.student,
            "weights": config["weights"],
            "prompt": vars(data.prompt),
            "creation": describe_creation(config),
        }
        metrics = measure(records, data.collect_reference_texts(), bert_model, load_identifier(cli))
        # First, since predictions that are there are complete.
        write_sealed(output.with_name(f"{output.name}.metrics.json"), to_json(metrics))
        write_table(output, records, metadata, list_columns(student.extractors))
        print(describe_predictions(output, records))
        log_evaluation(settings, output, config, data, records, metrics)

    writer = RecordWriter(output, config, finish)
    data.done = {(record["question_id"], 0) for record in writer.records.collect()}
    cli.trainer.callbacks.append(writer)
    cli.launch("predict", student, data, return_predictions=False)


if __name__ == "__main__":
    run_main(main, __file__)
