"""A student's upload, to a hub's stand-in on this machine; what must not be published is refused."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.files.seals import check_folder, describe_files
from scripts import push

SECRET = "canary-0123456789abcdef"


class Hub(BaseHTTPRequestHandler):
    """Takes every file as a small one, in the commit itself."""

    files: dict[str, bytes]
    asked: list[str]
    refuses: bool

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        assert self.headers["Authorization"] == f"Bearer {SECRET}"
        address = f"http://{self.headers['Host']}/owner/student"
        if self.refuses:
            self.answer({"error": "no"}, 403)
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif self.path.endswith("/repos/create"):
            self.answer({"url": address, "id": "owner/student"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": modes})
        else:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer({"commitUrl": f"{address}/commit/0", "commitOid": "0", "success": True})

    def answer(self, content: dict, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OwnHub", (Hub,), {"files": {}, "asked": [], "refuses": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(push, "HfApi", lambda: api)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield handler
        server.shutdown()


@pytest.fixture
def run(inside: Path, tmp_path: Path) -> Path:
    """A copy of the pipeline's run, with its results beside it."""
    folder = shutil.copytree(inside / "runs" / "g" / "r", tmp_path / "r")
    shutil.copy(inside / "predictions.parquet.metrics.json", folder)
    return folder


def test_a_student_is_uploaded_with_its_card_and_loads_from_there(hub, run, tmp_path, capsys) -> None:
    push.main([str(run), "--repo=owner/student"])
    assert "/owner/student/commit/0" in capsys.readouterr().out
    there = tmp_path / "there"
    there.mkdir()
    for name, content in hub.files.items():
        (there / name).write_bytes(content)
    check_folder(there)
    assert describe_files(there) == describe_files(run / "student")
    card = ModelCard.load(there / "README.md")
    assert "kindred" in card.data.tags and "## Results" in card.text and "| microworld | " in card.text
    model, tokenizer = AutoModelForCausalLM.from_pretrained(there), AutoTokenizer.from_pretrained(there)
    written = model.generate(tokenizer("A question", return_tensors="pt")["input_ids"], max_new_tokens=2)
    assert written.shape[0] == 1


def test_a_dry_run_uploads_nothing_and_shows_everything(hub, run, capsys) -> None:
    push.main([str(run), "--repo=owner/student", "--dry-run"])
    said = capsys.readouterr().out
    assert hub.asked == [] and "owner/student/model.safetensors" in said and "nothing was uploaded" in said
    assert "## Results" in said and "checkpoints" not in said


def test_only_what_is_done_and_whole_is_published(hub, run) -> None:
    config = run / "student" / "config.json"
    good = config.read_text()
    config.write_text(good + " ")
    with pytest.raises(ValueError, match=r"config\.json: it is not what was written"):
        push.main([str(run), "--repo=owner/student"])
    config.write_text(good)
    (run / "DONE").unlink()
    with pytest.raises(ValueError, match="is no run that is done"):
        push.main([str(run), "--repo=owner/student"])
    with pytest.raises(ValueError, match="run: no such file or folder: nowhere"):
        push.main(["nowhere", "--repo=owner/student"])
    assert hub.asked == []


def test_secrets_are_refused_without_being_said(hub, run) -> None:
    card = run / "student" / "README.md"
    written = card.read_text()
    card.write_text(f"{written}\nmine: {SECRET}\n")
    with pytest.raises(ValueError, match=r"README\.md: holds the value of the environment's HF_TOKEN") as refused:
        push.main([str(run), "--repo=owner/student"])
    assert SECRET not in str(refused.value)
    card.write_text(f"{written}\nmine: hf_{'a1' * 17}\n")
    with pytest.raises(ValueError, match=r"README\.md: holds what looks like a key"):
        push.main([str(run), "--repo=owner/student"])
    assert hub.asked == []


@pytest.mark.parametrize("repo", ["student", "owner/a/b", "../x", "o/.."])
def test_a_repository_has_an_owner_and_a_name(hub, run, repo) -> None:
    with pytest.raises(ValueError, match=r"^--repo"):
        push.main([str(run), f"--repo={repo}"])
    assert hub.asked == []


def test_a_hub_that_refuses_is_one_line(hub, run) -> None:
    hub.refuses = True
    with pytest.raises(ValueError, match=r"^owner/student: the hub did not take it: .*403") as refused:
        push.main([str(run), "--repo=owner/student"])
    assert "\n" not in str(refused.value) and SECRET not in str(refused.value)
