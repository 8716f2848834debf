"""Several nodes of which only one starts: a bounded wait, one line, and nothing that hangs."""

from pathlib import Path

import pytest

from lightning_modules.run.peers import read_wait
from tests.halting.process import PATIENCE
from tests.scripts.pipeline import COMMANDS, spawn
from tests.slurm.cluster import free_ports


@pytest.mark.parametrize("stage", ["fit", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_peers_that_never_start_are_waited_for_a_bounded_time(inside: Path, tmp_path: Path, stage: str) -> None:
    output = f"--run.root={tmp_path}" if stage == "fit" else f"--output={tmp_path / 'p.parquet'}"
    options = [*COMMANDS[stage], output, "--trainer.num_nodes=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    [port] = free_ports(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    process = spawn(stage, options, inside, KINDRED_PEER_WAIT="3", **address)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert [line for line in said.splitlines() if "num_nodes=2" in line and line.startswith("error: ")], said
    assert "Traceback" not in said


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf"])
def test_a_wait_is_a_number_of_seconds(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINDRED_PEER_WAIT", given)
    with pytest.raises(ValueError, match=f"KINDRED_PEER_WAIT={given}: expected a number"):
        read_wait()
