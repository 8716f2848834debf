"""Tests of a hub that does not answer: one line at once that names what is missing and how to get it."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from datamodules.files import hub
from datamodules.files.hub import describe_missing, is_reachable
from datamodules.model_sources import loading, locate_pretrained
from datamodules.tasks.benchmarks import load_task
from datamodules.tasks.questions import load_questions


@pytest.fixture(params=["no network", "HF_HUB_OFFLINE"])
def away(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that cannot be asked, or must not be."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", request.param == "HF_HUB_OFFLINE")
    # Nothing listens there, and so the connection is refused.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    is_reachable.cache_clear()
    yield "HF_HUB_OFFLINE is set" if request.param == "HF_HUB_OFFLINE" else "http://127.0.0.1:9 cannot be reached"
    is_reachable.cache_clear()


def test_a_model_that_is_not_there_is_named_with_the_way_out(away: str) -> None:
    with pytest.raises(ValueError, match="hf download owner/name") as caught:
        locate_pretrained("owner/name", None)
    assert away in str(caught.value) and "its folder, or a GGUF file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_way_out_fetches_the_revision_that_was_asked_for(away: str) -> None:
    with pytest.raises(ValueError, match=r"hf download owner/name --revision v1\.0 \(hugg"):
        locate_pretrained("owner/name", "v1.0")
    with pytest.raises(ValueError, match=r"hf download owner/name \(hugg"):
        locate_pretrained("owner/name", None)
    assert "hf download owner/name --revision 'a; b' (" in describe_missing("owner/name", "model", "its folder", "a; b")


def test_a_task_that_is_not_there_is_named_with_the_way_out(away: str) -> None:
    command = f"hf download allenai/openbookqa --repo-type dataset --revision {load_task('openbookqa').revision} "
    with pytest.raises(ValueError, match=command) as caught:
        load_questions("task:openbookqa:train")
    assert away in str(caught.value) and "task:openbookqa:train@FOLDER" in str(caught.value)


def test_what_is_cached_is_read_without_asking(away: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    _, options = locate_pretrained("owner/name", None)
    assert options == {"trust_remote_code": False, "local_files_only": True}


def test_a_name_that_is_never_resolved_is_waited_for_no_longer_than_for_an_answer(monkeypatch) -> None:
    released, ended = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> list:
        released.wait(600)
        ended.set()
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    is_reachable.cache_clear()
    assert not is_reachable() and not ended.is_set()
    released.set()
    assert ended.wait(600)
    is_reachable.cache_clear()


class Gateway(BaseHTTPRequestHandler):
    """Answers whatever is asked of the hub, and knows nothing of it."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_error(404)

    do_GET = do_HEAD


def test_what_answers_in_the_hubs_place_is_not_taken_for_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ValueError, match=r"^model owner/name is not in .* hf download owner/name "):
            with loading("owner/name", "config"):
                huggingface_hub.hf_hub_download("owner/name", "config.json", cache_dir=tmp_path, endpoint=endpoint)
        server.shutdown()
