"""Stage 3: a student learns from labels, rationales, or rationales with the teacher's logits.

    python -m scripts.fit --config configs/experiments/obqa_smollm2.yaml --model.loss.kl_weight=0.5

Writes `runs/<group>/<id>/`; the same config again finishes what was interrupted, or says that it is done.
"""

from scripts.common.front import answer_early

if __name__ == "__main__":
    answer_early("fit", __file__)

import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from datamodules.distillation import DistillationDataModule
from datamodules.files.atomic import hash_source
from lightning_modules.run.callbacks import check_callbacks
from lightning_modules.run.checkpoints import find_checkpoint, read_global_step
from lightning_modules.run.continuation import find_end
from lightning_modules.run.extent import find_early_end
from lightning_modules.run.folder import read_early_end
from lightning_modules.student.student import DistillationModule
from lightning_modules.tracking.wandb_logging import close_on_error, log_student
from scripts.common.endings import describe_run, describe_training
from scripts.common.entry import run_main
from scripts.common.fit_cli import FitCLI


def parse(args: list[str] | None = None) -> FitCLI:
    """Checks the whole command line and config, and loads nothing."""
    defaults = {"max_epochs": 3, "gradient_clip_val": 1.0, "log_every_n_steps": 1}
    return FitCLI("fit", DistillationModule, DistillationDataModule, "student", trainer_defaults=defaults, args=args)


def main(args: list[str] | None = None) -> Path:
    """Trains, exports the student, and returns the run's folder."""
    args = sys.argv[1:] if args is None else args
    cli = parse(args)
    run, data, student = cli.run, cli.datamodule, cli.model
    if run.is_done:
        if rank_zero_only.rank == 0:
            run.clear()
        early = read_early_end(run.path)
        print(f"{run.path}: done already" + (f"; it ended early, {early}" if early else ""))
        return run.path
    data.setup("fit")
    student.check(data)
    student.check_trainer(cli.trainer)
    check_callbacks(cli.trainer, student.list_metrics(data))
    with run.lock() if rank_zero_only.rank == 0 else nullcontext(), close_on_error():
        resume = find_checkpoint(run.checkpoints, cli.trainer.global_rank)
        if rank_zero_only.rank == 0:
            begin(cli, read_global_step(resume) if resume else 0)
        if resume is None and (continued := cli.config.run.continues) is not None:
            resume = find_end(continued, cli.trainer.global_rank)
        start = time.monotonic()
        cli.launch("fit", student, data, ckpt_path=resume, weights_only=True)
        finish(cli, start)
        if cli.trainer.is_global_zero:
            print(describe_run(run, args))
    return run.path


def begin(cli: FitCLI, step: int) -> None:
    """Writes what is known of the run before it trains, or goes on with it at a step."""
    data = cli.datamodule
    sources = [data.source.questions, *data.source.rationales, *data.logit_paths, *data.rows_against]
    sources += data.own.rationales or []
    # The examples' own hash covers questions that are generated or come from the hub, and every filter.
    hashes = {path: value for path in sources if (value := hash_source(path)) is not None}
    hashes["examples"] = data.texts_hash
    seeds = {
        "seed_everything": cli.config.seed_everything,
        "split": data.validation.seed,
        "order": data.batches.order_seed,
    }
    precision = cli.trainer.precision
    cli.run.begin(cli.dump_config(), hashes, seeds, precision, step)
    if cli.config.trainer.precision is None and precision != "32-true":
        print(f"precision: {precision}, as trainer.precision says nothing; 32-true is float32")
    if data.own_examples is not None:
        print("the student's own text: " + ", ".join(f"{n} {v:.3g}" for n, v in data.own_examples.statistics.items()))
    if data.source.num_left:
        print("rationales left: " + ", ".join(f"{count} {name}" for name, count in data.source.num_left.items()))
    if data.coverage:
        print("tokens by alignment: " + ", ".join(f"{share:.1%} {name}" for name, share in data.coverage.items()))
    if data.row_shares:
        print("tokens by rows: " + ", ".join(f"{share:.1%} {name}" for name, share in data.row_shares.items()))


def finish(cli: FitCLI, start: float) -> None:
    """Exports the student, in which every process has a part, and marks the run as done.

    Args:
        cli: The stage.
        start: When this attempt began, by the monotonic clock.
    """
    run, data = cli.run, cli.datamodule
    early = find_early_end(cli.trainer)
    if cli.trainer.is_global_zero and run.student.exists():
        # An earlier attempt was killed between the export and DONE.
        shutil.rmtree(run.student)
    cli.model.export(run.student)
    if not cli.trainer.is_global_zero:
        return
    run.finish(
        {
            "global_step": cli.trainer.global_step,
            "ended_early": early,
            "train_examples": len(data.train_examples),
            "num_left": data.source.num_left,
            "supervised_tokens_per_epoch": data.count_supervised_tokens(),
            "alignment": data.coverage,
            "rows": data.row_shares,
            "texts": data.texts_hash,
        }
    )
    log_student(cli.trainer, run)
    end = f"early, {early}" if early else f"after {cli.trainer.global_step} steps"
    print(describe_training(run, data, end, time.monotonic() - start))


if __name__ == "__main__":
    run_main(main, __file__)
