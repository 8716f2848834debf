"""Tests of vLLM's engine: its GPUs and options, what it refuses, and whose death is no failure."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from lightning_modules.run.stop_signal import StopListener, leaving_if_stopped, shielding_children
from lightning_modules.run.writers import RecordWriter
from lightning_modules.teacher.backends import Source
from lightning_modules.teacher.vllm_backend import EngineOptions, VLLMBackend, choose_gpus
from tests.lightning_modules.conftest import World


class Engine:
    """Keeps what it is started with."""

    def __init__(self, **options):
        self.options = options


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself is not here."""
    fake = SimpleNamespace(LLM=Engine)
    monkeypatch.setattr("lightning_modules.teacher.vllm_backend.import_vllm", lambda: fake)
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)


def test_a_name_is_resolved_with_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("identify_weights", "read_end_ids"):
        monkeypatch.setattr(f"lightning_modules.teacher.vllm_backend.{name}", lambda *_: [])
    backend = VLLMBackend(tensor_parallel_size=4)
    backend.load(Source("model:qwen2.5-7b-instruct", None, "bfloat16", None), None)
    options = backend.engine.options
    assert options["model"] == "Qwen/Qwen2.5-7B-Instruct" and len(options["revision"]) == 40
    assert options["tensor_parallel_size"] == 4 and options["dtype"] == "bfloat16"
    # vLLM's own choices stay its own.
    assert options["pipeline_parallel_size"] == 1 and not options.keys() & {"max_num_seqs", "cpu_offload_gb"}
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_a_teacher_over_two_nodes_is_one_engine(world: World) -> None:
    options = EngineOptions(pipeline_parallel_size=2, distributed_executor_backend="ray", max_num_seqs=64)
    backend = VLLMBackend(tensor_parallel_size=8, engine=options)
    source = Source(world.teacher, None, "float32", None)
    backend.place(SimpleNamespace(world_size=1, num_devices=1))
    backend.check(source, 96, 7)
    backend.load(source, None)
    given = backend.engine.options
    assert (given["pipeline_parallel_size"], given["tensor_parallel_size"], given["max_num_seqs"]) == (2, 8, 64)
    assert given["distributed_executor_backend"] == "ray" and given["max_model_len"] == 96
    with pytest.raises(ValueError, match="ray takes GPUs of all nodes, and 2 processes would each start one"):
        backend.place(SimpleNamespace(world_size=2, num_devices=1))


def test_each_engine_of_a_node_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = ["0", "1", "2", "GPU-3"]
    assert [choose_gpus(gpus, rank, 2, 2) for rank in (0, 1)] == [["0", "1"], ["2", "GPU-3"]]
    with pytest.raises(ValueError, match=r"2 engines of 3 GPUs on a node, but it has 4; lower trainer\.devices"):
        choose_gpus(gpus, 0, 2, 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))
    VLLMBackend().place(SimpleNamespace(world_size=8, num_devices=4, local_rank=3))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-3"


def test_gpus_that_stay_idle_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    VLLMBackend(2).place(SimpleNamespace(world_size=1, num_devices=1, local_rank=0, is_global_zero=True))
    assert "vLLM takes 2 of the 4 GPUs" in str(recwarn.pop().message)
    VLLMBackend(4).place(SimpleNamespace(world_size=1, num_devices=1, local_rank=0, is_global_zero=True))
    assert not recwarn.list


@pytest.mark.parametrize("teacher", ["teacher.gguf", "runs/g/r/checkpoints/last.ckpt", "adapter"])
def test_what_vllm_does_not_load_is_refused(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    content = {"base_model_name_or_path": "owner/base", "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{teacher}: vLLM loads a hub model or its folder, no GGUF file"):
        VLLMBackend().check(Source(str(tmp_path / teacher), None, "float32", None), 64, 7)


def test_a_child_outlives_the_signal_and_this_process_hears_of_it(tmp_path: Path) -> None:
    listener, before = StopListener(), [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
    try:
        listener.listen()
        with shielding_children():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            os.kill(os.getpid(), signal.SIGUSR1)
        # Another thread, such as a test runner's, may be the one that the system wakes for it.
        until = time.monotonic() + 60
        while listener.received is None and time.monotonic() < until:
            time.sleep(0.01)
        assert listener.received == "SIGUSR1"
        child.send_signal(signal.SIGUSR1)
        child.communicate(b"\n", timeout=600)
        assert child.returncode == 0
        # So the engine's death is the scheduler's doing, and so is a peer's.
        with pytest.raises(SystemExit) as left, leaving_if_stopped("while vLLM was at work"):
            raise RuntimeError("EngineDeadError")
        assert left.value.code == 75
        gone = Mock(side_effect=RuntimeError("Connection closed by peer"))
        trainer = SimpleNamespace(strategy=SimpleNamespace(barrier=gone), is_global_zero=True)
        with pytest.raises(SystemExit) as left:
            RecordWriter(tmp_path / "r.parquet", {}, lambda records: None).teardown(trainer, None, "predict")
        assert left.value.code == 75
    finally:
        for number, handler in zip((signal.SIGUSR1, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_an_engine_that_dies_by_itself_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.run.stop_signal.SIGNAL_WAIT", 0.0)
    with pytest.raises(RuntimeError, match="EngineDeadError"), leaving_if_stopped("while vLLM was at work"):
        raise RuntimeError("EngineDeadError")
