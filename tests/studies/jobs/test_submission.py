"""Which arrays a list of jobs becomes; the cluster itself is in `tests/slurm`."""

import json
from pathlib import Path

import pytest

from studies.jobs.submission import read_submissions, submit_jobs
from tests.studies.jobs.test_arm_rounds import make_plan

# Prints 1, 2, ... and keeps each command line.
SBATCH = """\
#!/bin/sh
echo "$@" >> calls
wc -l < calls
"""


def test_no_array_begins_before_what_its_jobs_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINDRED_SITE", "here")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Path("sbatch").write_text(SBATCH)
    Path("sbatch").chmod(0o755)
    Path("squeue").write_text("#!/bin/sh\n")
    Path("squeue").chmod(0o755)
    plan = make_plan({"supervisions": ["label", "rationale", "rationale+logits", "on-policy"]})
    jobs = plan.jobs()
    submit_jobs(jobs, plan.folder)
    array = {name: int(entry["job"].split("_")[0]) for name, entry in read_submissions(plan.folder).items()}
    calls = [call.split() for call in Path("calls").read_text().splitlines()]
    for job in jobs:
        [after] = [arg for arg in calls[array[job.name] - 1] if arg.startswith("--dependency=")] or [""]
        waits = after.removeprefix("--dependency=afterany:").split(":")
        assert {str(array[name]) for name in job.needs} <= set(waits)
    # Jobs of a stage that wait for as much share an array, and its list names each of them first.
    assert array["fit-l-on-policy-L-seed0-round-1"] == array["fit-q-on-policy-Q-seed0-round-1"]
    listed = [json.loads(line)["name"] for line in Path(calls[-1][-1]).read_text().splitlines()]
    assert listed[0] == "analyze" and array["analyze"] == len(calls)
