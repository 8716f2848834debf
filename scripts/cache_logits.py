"""Stage 2: a teacher reads each (prompt, rationale) once and stores its sparse next-token distributions.

    python scripts/cache_logits.py --config configs/experiments/obqa_smollm2.yaml

Writes a logit cache (a folder). Interrupted, it continues after its last complete shard.
"""

from pathlib import Path

from datamodules.distillation import RationaleDataModule
from datamodules.logit_cache import LogitCache
from datamodules.logit_writer import LogitCacheWriter, refuse_other_folder
from lightning_modules.teacher import LogitScorer
from lightning_modules.writers import CacheWriter
from scripts.stage_cli import PredictCLI, run_main


def parse(args: list[str] | None = None) -> PredictCLI:
    """Checks the whole command line and config, and loads nothing."""
    return PredictCLI("cache_logits", LogitScorer, RationaleDataModule, "teacher", args)


def main(args: list[str] | None = None) -> None:
    """Caches logits."""
    cli = parse(args)
    output, data, teacher = Path(cli.config.output), cli.datamodule, cli.model
    refuse_other_folder(output)
    data.setup("predict")
    teacher.check(data)
    writer = LogitCacheWriter(output, teacher.describe(data.fingerprint, data.prompt.id, len(data.tokenizer)))
    data.done = writer.find_done()
    left = [example for example in data.examples if example.id not in data.done]
    if not left and writer.is_complete():
        LogitCache(output).check(teacher.teacher_name, data.tokenizer, data.prompt.id, data.examples)
        print(f"{output}: complete already")
        return
    cli.trainer.callbacks.append(CacheWriter(writer, cli.result_config()))
    cli.trainer.predict(teacher, data, return_predictions=False)
    if cli.trainer.is_global_zero:
        rows = sum(len(example.token_ids) - example.num_prompt_tokens for example in left)
        print(f"{output}: {len(left)} examples, {rows} completion tokens")


if __name__ == "__main__":
    run_main(main)
