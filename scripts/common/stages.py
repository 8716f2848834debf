"""The stages' scripts, by name, for those that run them as jobs."""

from typing import Any

from scripts import annotate, cache_logits, evaluate, export, fit, pivot

STAGES: dict[str, Any] = {"annotate": annotate, "cache_logits": cache_logits, "fit": fit, "evaluate": evaluate}
MAINS = {name: script.main for name, script in STAGES.items()}
# With what a study runs beside its stages, which has no section of an experiment's file.
JOBS = {**MAINS, "pivot": pivot.main, "export": export.main}
