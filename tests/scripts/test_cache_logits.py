"""Tests of the logit cache's script: what it says of a cache, and that a capture survives being killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamodules.logit_cache.reader import LogitCache
from scripts.cache_logits import main
from tests.scripts.conftest import COMMANDS
from tests.tiny import save_model

ROOT = Path(__file__).parents[2]
RERUN = ["--teacher=models/teacher", "--questions=colours_train.jsonl", "--rationales", "r.parquet"]
SETTINGS = {
    "top_k": [],
    "adaptive": ["--model.kind=adaptive", "--model.mass=0.8"],
    "sampled": ["--model.kind=sampled", "--model.top_k=null", "--model.draws=30"],
    "hybrid": ["--model.kind=hybrid", "--model.draws=10"],
    "hidden": ["--model.kind=hidden", "--model.top_k=null"],
    "labels": ["--model.kind=labels", "--model.top_k=null"],
}


def report(bench, *args: str) -> dict[str, list[str]]:
    """Returns the printed table's rows, by their first cell."""
    bench.capsys.readouterr()
    main(["inspect", *args])
    lines = [line for line in bench.capsys.readouterr().out.splitlines() if line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: values for name, *values in cells}


@pytest.mark.parametrize("kind", SETTINGS)
def test_inspect_says_what_a_cache_holds(bench, kind):
    bench.run("cache_logits", *SETTINGS[kind])
    exact = kind not in ("sampled", "hybrid", "labels")
    png = bench.folder / "report.png"
    rows = report(bench, "out/logits", "--verify", f"--png={png}", *(RERUN if exact else [RERUN[1]]))
    cache = LogitCache(Path("out/logits"))
    assert rows["teacher"] == ["teacher"] and rows["examples"] == ["8"] and rows["tokens"] == [f"{cache.num_rows}"]
    assert rows["vocabulary"][0].endswith("with its bytes")
    assert rows["kept"][0].startswith(f"kind {kind}") and rows["tasks"] == ["colours (8 examples)"]
    size = sum(path.stat().st_size for path in Path("out/logits").iterdir())
    assert float(rows["bytes per token"][0]) == pytest.approx(size / cache.num_rows, abs=0.05)
    assert png.read_bytes().startswith(b"\x89PNG")
    if kind in ("top_k", "adaptive"):
        mass, tail = float(rows["covered mass"][0]), float(rows["tail mass"][0])
        assert mass + tail == pytest.approx(1, abs=0.01)
        assert 0 < float(rows["entropy, the tail as one token (nats)"][0]) < 6
    if kind == "top_k":
        assert rows["support size k"] == ["8"] * 6
    if exact:
        bound = {"hidden": 1e-6}.get(kind, 2e-4)
        assert -1e-9 < float(rows["KL(teacher, cache) of a sample (nats)"][0]) < bound


def test_inspect_refuses_what_it_cannot_compare(bench):
    def refuse(*args: str) -> str:
        return bench.refuse_main(main, ["inspect", *args])

    assert "is not the teacher of logits" in refuse("logits", "--teacher=models/other", *RERUN[1:])
    renewed = save_model(bench.folder / "renewed" / "teacher", seed=9)
    assert "is not the teacher of logits" in refuse("logits", f"--teacher={renewed}", *RERUN[1:])
    assert "belong together" in refuse("logits", RERUN[0])
    assert "no finished logit cache" in refuse("nowhere")
    shard = next(Path("logits").glob("shard-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-300] + bytes([content[-300] ^ 1]) + content[-299:])
    assert shard.name in refuse("logits", "--verify") and "damaged" in refuse("logits")
    bench.run("cache_logits", *SETTINGS["sampled"])
    assert "are draws" in refuse("out/logits", *RERUN)
    bench.run("cache_logits", *SETTINGS["labels"], "--output=labels")
    assert "are no distributions" in refuse("labels", *RERUN)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.mass=0.9"], "model.mass is given, but kind top_k ignores it"),
        (["--model.kind=sampled"], "model.top_k is given, but kind sampled ignores it"),
        (["--model.kind=top"], "model.kind"),
        (["--model.values=int8"], "model.values"),
        (["--model.kind=hybrid", "--model.temperatures=[2]"], "unbiased at temperature 1 only"),
        (["--rows_per_shard=0"], "rows_per_shard"),
    ],
)
def test_settings_that_do_not_fit_are_refused(bench, options, named):
    assert named in bench.refuse("cache_logits", *options)


@pytest.mark.slow
def test_a_full_disk_is_refused_in_one_line(bench):
    script = [sys.executable, "-m", "scripts.cache_logits", *COMMANDS["cache_logits"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *script, "--output=logits2"]
    done = subprocess.run(limited, cwd=bench.folder, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1
    assert "logits2/shard-0000-00000.safetensors: cannot be written: File too large" in lines[0]
    assert not Path("logits2").exists()


@pytest.mark.slow
def test_killed_captures_continue_to_the_same_content(bench):
    """Three kills at random moments, batches of one or two examples, a shard a batch."""
    options = ["--rows_per_shard=1", "--data.batches.tokens_per_batch=100", "--output=killed"]
    bench.run("cache_logits", *options[:2], "--output=whole")
    script = [sys.executable, "-m", "scripts.cache_logits", *COMMANDS["cache_logits"], *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    moments = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            script, cwd=bench.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = len(list(Path("killed").glob("shard-*")))
        while process.poll() is None and len(list(Path("killed").glob("shard-*"))) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
    bench.run("cache_logits", *options)
    whole, killed = ({i: rows for i, rows in LogitCache(Path(name)).read_all()} for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for identifier, rows in whole.items():
        for name, plane in rows.items():
            assert plane.tobytes() == killed[identifier][name].tobytes()
    assert not list(Path("killed").glob(".*"))
    assert "complete already" in bench.run("cache_logits", *options)
