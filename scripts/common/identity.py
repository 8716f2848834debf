"""Which settings cannot change a result: they are no part of what a run or an artefact is known by."""

from typing import Any

# What cannot change the result, section by section: where and how fast it is computed, and what is said of it
# meanwhile. Everything else counts, callbacks and plugins included.
NEUTRAL = {
    "trainer": frozenset(
        {
            *("accelerator", "strategy", "devices", "num_nodes"),
            *("logger", "log_every_n_steps", "default_root_dir", "enable_checkpointing", "enable_autolog_hparams"),
            *("enable_progress_bar", "enable_model_summary", "profiler", "model_registry"),
            # They look for mistakes, or spare what a prediction does not need.
            *("detect_anomaly", "inference_mode"),
        }
    ),
    "data": frozenset({"batches.num_workers", "encoding.cache_dir", "batches.tokens_per_batch"}),
    # The command line itself.
    "": frozenset({"config", "output", "run", "throughput", "wandb", "rows_per_shard", "dry_run"}),
}

# Settings of the data that may name files; their content counts.
SOURCES = ("questions", "rationales", "references", "logits", "rows_against", "shown_rationales")

# A backend's settings that cannot change what the teacher answers: where it is asked, how often, at what price.
NEUTRAL_BACKEND = frozenset(
    {
        *("base_url", "key_variable", "max_concurrent", "timeout", "max_retries", "retry_delay"),
        *("max_requests", "max_tokens_total", "prompt_price", "completion_price"),
        *("tensor_parallel_size", "gpu_memory_utilization", "requests_per_call", "engine"),
    }
)


def drop_neutral(section: str, settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a section's settings that count, those of its components likewise."""
    kept = {name: value for name, value in settings.items() if prefix + name not in NEUTRAL[section]}
    parts = {name.partition(".")[0] for name in NEUTRAL[section] if "." in name} if not prefix else ()
    return kept | {name: drop_neutral(section, kept[name], f"{name}.") for name in parts if name in kept}
