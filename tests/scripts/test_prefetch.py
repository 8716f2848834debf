"""What an experiment needs of the hub, fetched from a hub's stand-in on this machine and then read without it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from scripts.common.hub_check import fill_languages, find_sources
from scripts.prefetch import find_models
from tests.scripts.pipeline import MODELS, ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from datamodules.examples.tokenization import load_tokenizer
from lightning_modules.model.pretrained import load_causal_lm
print(len(load_tokenizer(*sys.argv[1:])), load_causal_lm(*sys.argv[1:]).num_parameters())
"""
# As `python -m scripts.prefetch`, but that it waits for the hub.
PREFETCH = """
import runpy
from datamodules.files import hub
hub.TIMEOUT = 600.0
runpy.run_module("scripts.prefetch", run_name="__main__", alter_sys=True)
"""


class Hub(BaseHTTPRequestHandler):
    """Has one model, `owner/student`, at one commit; beside its own files one that no stage reads."""

    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        folder, headers = MODELS / "b-student", {"X-Repo-Commit": COMMIT}
        names = [*sorted(path.name for path in folder.iterdir()), "pytorch_model.bin"]
        about = "/api/models/owner/student/"
        if self.path.startswith(f"{about}revision/{COMMIT}"):
            content = json.dumps({"id": "owner/student", "sha": COMMIT}).encode()
        elif self.path.startswith(f"{about}tree/{COMMIT}"):
            files = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
            content = json.dumps(files).encode()
        elif self.path.startswith(f"/owner/student/resolve/{COMMIT}/") and Path(self.path).name in names[:-1]:
            content = (folder / Path(self.path).name).read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    handler = type("OwnHub", (Hub,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(folder: Path, endpoint: str, *args: str, offline: bool = False) -> subprocess.CompletedProcess:
    """Runs Python with a hub's address; no answer is too late."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub"), "HF_ENDPOINT": endpoint}
    environment |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "600", "HF_HUB_DOWNLOAD_TIMEOUT": "600"}
    return subprocess.run([sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_what_was_fetched_is_read_without_the_hub(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    handler, endpoint = hub
    model = {"student": "owner/student", "revision": COMMIT}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"fit": {"model": model}, "evaluate": {"model": model}}))
    dry_run = ["-m", "scripts.prefetch", "--config", "c.yaml", "--dry-run"]
    before = run(tmp_path, endpoint, *dry_run)
    assert before.returncode == 2 and before.stderr.strip() == "error: c.yaml: 1 of 1 are missing"
    assert f"hf download owner/student --revision {COMMIT}" in before.stdout and handler.asked == []
    fetched = run(tmp_path, endpoint, "-c", PREFETCH, "--config=c.yaml")
    assert fetched.returncode == 0, fetched.stdout
    assert fetched.stdout.splitlines() == [f"there    owner/student@{COMMIT}", "c.yaml: all 1 are there"]
    assert not [line for line in handler.asked if "pytorch_model" in line]
    asked = len(handler.asked)
    loaded = run(tmp_path, endpoint, "-c", LOAD, "owner/student", COMMIT, offline=True)
    assert loaded.returncode == 0, loaded.stderr
    local = run(tmp_path, endpoint, "-c", LOAD, str(MODELS / "b-student"), offline=True)
    assert loaded.stdout == local.stdout and len(handler.asked) == asked
    assert run(tmp_path, endpoint, *dry_run, offline=True).returncode == 0


def test_what_the_hub_does_not_have_is_named(hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("evaluate: {model: {student: owner/other}}")
    refused = run(tmp_path, hub[1], "-c", PREFETCH, "--config=c.yaml")
    assert refused.returncode == 2 and "missing  owner/other@main: owner/other: " in refused.stdout


def test_models_and_tasks_are_found_wherever_they_stand() -> None:
    content = yaml.safe_load((ROOT / "configs" / "studies" / "obqa_families.yaml").read_text())
    models = dict(find_models(content))
    assert "HuggingFaceTB/SmolLM2-1.7B-Instruct" in models and all(
        len(commit or "") == 40 for commit in models.values()
    )
    assert set(find_sources(content)) >= {"task:openbookqa:train", "task:commonsense_qa:validation"}


def test_a_studys_languages_are_fetched_and_english_for_pivots() -> None:
    content = yaml.safe_load((ROOT / "configs" / "studies" / "msvamp_languages.yaml").read_text())
    found = list(fill_languages(content["study"], find_sources(content["study"])))
    tags = {"msvamp": ["de", "sw", "th", "en"], "mgsm": ["de", "sw", "th"]}
    assert found == [f"task:{task}:test:{tag}" for task in tags for tag in tags[task]]


def test_what_is_local_or_served_is_not_fetched(tmp_path: Path) -> None:
    teacher = {"teacher": "owner/served", "backend": {"class_path": "OpenAIBackend"}}
    content = {
        "annotate": {"model": teacher, "data": {"tokenizer": str(tmp_path), "questions": "task:x:test@folder"}},
        "fit": {"model": {"student": "runs/g/r/checkpoints/last.ckpt"}, "data": {"questions": "microworld:train:8:0"}},
        "study": {"students": {"x": {"model": "weights.gguf"}}, "teachers": {"y": {"rationales": "y.jsonl"}}},
    }
    assert list(find_models(content)) == [] and list(find_sources(content)) == []
