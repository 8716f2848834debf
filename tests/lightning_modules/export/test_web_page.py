"""Tests of a student's page: its folder, what is refused, and the page in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datamodules.examples.encoding import decode_completion, find_end_tokens
from datamodules.examples.tokenization import encode_prompt, load_tokenizer
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question, load_questions

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from datamodules.files.atomic import hash_path
from lightning_modules.export import web_page
from lightning_modules.export.web_page import LARGEST, PAGE, STUDENT, Page, collect_page, is_written, write_page
from lightning_modules.export.web_prompt import fill, list_probes
from lightning_modules.export.web_runtime import COMPAT, VERSION, WLLAMA, Package
from lightning_modules.model.llama_cpp import LlamaCpp
from scripts import export
from tests.browser import CHROMIUM, Browser, browse, serve
from tests.lightning_modules.export.conftest import Exported

NODE = Path(__file__).parents[3] / "node_modules"
# What a page asks of its runtime, where the real one is not installed: it writes what the question says.
STAND_IN = """
export class Wllama {
  setCompat(compat) { this.compat = compat; }
  async loadModel([blob], settings) { this.size = blob.size; window.settings = settings; }
  async createCompletion({ prompt, max_tokens, abortSignal, onData }) {
    const text = prompt.includes("long") ? "on ".repeat(999) : `So it is <b>${this.size}</b>. The answer is the box.`;
    const tokens = text.match(/\\S+\\s*/g);
    for (const own of tokens.slice(0, max_tokens)) {
      await null;
      if (abortSignal.aborted) throw Object.assign(new Error("aborted"), { name: "AbortError" });
      onData({ choices: [{ text: own, finish_reason: null }] });
    }
    onData({ choices: [{ text: "", finish_reason: tokens.length > max_tokens ? "length" : "stop" }] });
  }
}
"""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@dataclass(frozen=True)
class Made:
    """A page with a runtime that stands in for the real one."""

    runtime: Path
    page: Page
    folder: Path


@pytest.fixture(scope="module")
def made(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("web")
    (runtime := folder / "wllama").mkdir()
    (runtime / "package.json").write_text(json.dumps({"name": "@wllama/wllama", "version": VERSION}))
    (runtime / "wllama.js").write_text(STAND_IN)
    files = {"wllama.js": ("wllama.js", hash_path(runtime / "wllama.js"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_page, "WLLAMA", Package("@wllama/wllama", "--runtime", files))
        # It takes seconds for each real file.
        patch.setattr("gguf.GGUFReader", None)
        page = collect_page(str(exported.file("Q4_K_M")), None, runtime, None, 40)
        write_page(page, folder / "page")
        yield Made(runtime, page, folder / "page")


def test_a_folder_holds_the_page_and_nothing_else(made: Made, exported: Exported, tmp_path: Path, capsys) -> None:
    names = {"index.html", "page.css", "page.js", "prompt.js", "wllama.js", "student.gguf", STUDENT}
    assert {path.name for path in made.folder.iterdir()} == names
    assert (made.folder / "student.gguf").read_bytes() == exported.file("Q4_K_M").read_bytes()
    content = json.loads((made.folder / STUDENT).read_text())
    assert content == made.page.content and content["prompt"]["name"] == "plain" and content["context"] == 512
    facts = dict(content["facts"])
    assert facts["Teachers"] == "a-teacher" and facts["Learned from"].endswith("licence Apache-2.0")
    command = ["web", f"--model.student={exported.file('Q4_K_M')}", f"--runtime={made.runtime}", "--max_new_tokens=40"]
    export.main([*command, f"--output={made.folder}"])
    assert capsys.readouterr().out == f"{made.folder}: complete already\n"
    again = shutil.copytree(made.folder, tmp_path / "again")
    assert is_written(made.page, again)
    (again / "page.css").write_text("")
    assert not is_written(made.page, again)
    with pytest.raises(ValueError, match="again: is there already"):
        export.main([*command, f"--output={again}"])
    export.main([*command, f"--output={tmp_path / 'its own'}"])
    assert f"python -m http.server --directory '{tmp_path / 'its own'}'" in capsys.readouterr().out


def test_a_page_asks_for_nothing_outside_and_runs_nothing_that_is_written_into_it() -> None:
    policy = re.search(r'Content-Security-Policy" content="(.+?)"', (PAGE / "index.html").read_text())
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'" and rules["connect-src"] == rules["style-src"] == "'self'"
    for file in PAGE.iterdir():
        assert not re.search(r"https?:|//[a-z]+\.|innerHTML|insertAdjacent|outerHTML|document\.write", file.read_text())
    scripts = re.findall(r"<script(.*?)</script>", (PAGE / "index.html").read_text(), re.DOTALL)
    assert scripts == [' type="module" src="page.js">']


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": "config.json"}, "config.json: is no GGUF file; write one first"),
        ({"student": "large.gguf"}, f"large.gguf: is larger than the {LARGEST:,} bytes"),
        ({"prompt": "x"}, "prompt 'x' is unknown"),
        ({"max_new_tokens": 512}, "--max_new_tokens: 512 leave no room for a prompt in 512 tokens"),
        ({"runtime": "none"}, rf"--runtime: none holds no .* npm install @wllama/wllama@{VERSION}"),
        ({"compat": "none"}, rf"--compat: none holds no .* npm install @wllama/wllama-compat@{VERSION}"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_no_page_is_refused(
    arguments: dict[str, Any], message: str, made: Made, exported: Exported, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text("{}")
    with Path("large.gguf").open("wb") as file:
        file.truncate(LARGEST + 1)
    student = str(exported.file("Q8_0"))
    own = {"student": student, "prompt": None, "runtime": made.runtime, "compat": None, "max_new_tokens": 8} | arguments
    own |= {name: Path(own[name]) for name in ("runtime", "compat") if own[name] is not None}
    with pytest.raises(ValueError, match=message):
        collect_page(**own)


def test_a_file_without_a_card_does_not_say_how_it_is_asked(made: Made, exported: Exported, monkeypatch) -> None:
    monkeypatch.setattr(web_page, "read_card", lambda path: {})
    with pytest.raises(ValueError, match=r"--prompt: say how the student is asked, since .* does not"):
        collect_page(str(exported.file("Q8_0")), None, made.runtime, None, 8)


def test_a_full_disk_leaves_nothing(made: Made, tmp_path: Path, full_disk) -> None:
    with full_disk(20_000), pytest.raises(ValueError, match="out: cannot be written"):
        write_page(made.page, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browse(tmp_path_factory.mktemp("profile")) as own:
        yield own


def read(browser: Browser) -> dict[str, str]:
    """Returns what a page shows."""
    names = ["name", "rationale", "answer", "status", "prompt"]
    return dict(browser.run(f"Object.fromEntries({names}.map((id) => [id, document.getElementById(id).textContent]))"))


def ask(browser: Browser, question: Question, then: str = "") -> dict[str, str]:
    """Asks as a user does, and returns what the page shows once the answer is there."""
    values = {"question": question.question, "options": "\n".join(question.choices or ())}
    for name, value in values.items():
        browser.run(f"document.getElementById({name!r}).value = {json.dumps(value)}")
    browser.run(f"document.getElementById('ask').click(); {then}")
    browser.wait("document.body.dataset.state === 'ready'")
    return read(browser)


def open_page(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait("document.body && ['ready', 'failed'].includes(document.body.dataset.state)")


@needs_chromium
def test_a_browser_poses_and_reads_as_python_does(made: Made, browser: Browser) -> None:
    questions = [*list_probes(), Question("q", "t", "test", "$& {question} <b>\n\\?", ("Yes", "NO"), None)]
    asked = [[question.question, list(question.choices or ())] for question in questions]
    with serve(made.folder) as (address, _):
        open_page(browser, address)
        load = "const own = await import('/prompt.js')"
        found = browser.run(
            f"(async () => {{ {load}; return {json.dumps(asked)}.map(([question, options]) => "
            f"own.posePrompt({json.dumps(made.page.content['prompt'])}, question, options)); }})()"
        )
        assert found == [fill(made.page.content["prompt"], question) for question in questions]
        forms = [["The answer is ", "."], "So. The answer is A) x. So. The answer is B) tin can.\nQuestion: more"]
        parted = browser.run(f"(async () => {{ {load}; return own.partAnswer(...{json.dumps(forms)}) }})()")
        assert parted == {"rationale": "So. The answer is A) x. So.", "stated": "B) tin can"}
        stated = json.dumps(["B) tin can", "Tin can", "B", "tin", "C"])
        options = json.dumps(["tin", "tin can."])
        numbers = browser.run(
            f"(async () => {{ {load}; return {stated}.map((own_) => own.findOption({options}, own_)) }})()"
        )
        assert numbers == [1, 1, 1, 0, -1]


@needs_chromium
def test_a_page_answers_stops_and_refuses(made: Made, browser: Browser, tmp_path: Path) -> None:
    # What stands in a file is text, whatever it says.
    folder, markup = shutil.copytree(made.folder, tmp_path / "page"), "<img src=x onerror=alert(1)>"
    content = made.page.content | {"name": markup, "facts": [[markup, markup]]}
    (folder / STUDENT).write_text(json.dumps(content))
    question = Question("q", "t", "test", "Which thing can float?", ("the fan", "the box"), None)
    with serve(folder) as (address, asked):
        open_page(browser, address)
        assert browser.run("[window.settings.n_ctx, window.settings.n_gpu_layers]") == [512, 0]
        shown = ask(browser, question)
        assert shown["rationale"] == f"So it is <b>{made.page.content['bytes']}</b>."
        assert (shown["answer"], shown["name"]) == ("B) the box", markup)
        assert shown["status"].startswith("9 tokens, ")
        assert browser.run("document.querySelectorAll('img, b, [onerror]').length") == 0
        other = ask(browser, Question("q", "t", "test", "Which?", ("the fan", "the jar"), None))
        assert other["answer"] == "the box" and browser.run("!document.getElementById('doubt').hidden")
        long = Question("q", "t", "test", "How long?", None, None)
        shown = ask(browser, long)
        assert shown["status"].endswith("cut off at its limit") and shown["status"].startswith("40 tokens")
        assert shown["answer"] == "none is stated" and shown["rationale"] == ("on " * 40).strip()
        assert ask(browser, long, "document.getElementById('stop').click()")["status"] == "0 tokens, stopped"
        for text, options, message in (
            ("", ("a", "b"), "Write a question first."),
            ("Which?", ("a",), "One option is no choice"),
            ("Which?", tuple("x" * n for n in range(1, 29)), "There can be 26 options"),
            ("Is </s> it?", None, "The student cannot read </s> as text"),
        ):
            assert message in ask(browser, Question("q", "t", "test", text, options, None))["status"]
        assert browser.complaints() == []
    assert {path.removeprefix("/") or "index.html" for path in asked} == {path.name for path in folder.iterdir()}


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")], ids=["wide", "narrow"])
def test_a_page_fits_its_screen(made: Made, browser: Browser, width: int, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=features)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    with serve(made.folder) as (address, _):
        open_page(browser, address)
        words = ("an" * 99, "the box")
        ask(browser, Question("q", "t", "test", "x" * 300, words, None))
        assert browser.run("document.documentElement.scrollWidth") <= width
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        assert colour == {"light": "rgb(253, 252, 249)", "dark": "rgb(21, 24, 27)"}[scheme]


@needs_chromium
@pytest.mark.skipif(
    not all((NODE / package.name).is_dir() for package in (WLLAMA, COMPAT)),
    reason=f"npm install --no-save {WLLAMA.name}@{VERSION} {COMPAT.name}@{VERSION}",
)
@pytest.mark.parametrize("compat", [False, True], ids=["own", "compat"])
def test_a_student_answers_in_a_browser_as_by_llama_cpp(
    exported: Exported, tmp_path: Path, compat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_page, "WLLAMA", WLLAMA)
    file, folder = str(exported.file("f16")), tmp_path / "page"
    command = ["web", f"--model.student={file}", f"--runtime={NODE / WLLAMA.name}", f"--output={folder}"]
    export.main([*command, f"--compat={NODE / COMPAT.name}"])
    questions = [question for question in load_questions("microworld:test:4:0")]
    tokenizer, engine = load_tokenizer(file), LlamaCpp(file)
    answered = 0
    with serve(folder) as (address, asked), browse(tmp_path / "profile") as browser:
        if compat:
            # As in a browser that cannot suspend WebAssembly.
            browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete WebAssembly.Suspending")
        open_page(browser, address)
        # As on a phone, which reaches a computer by its name, without TLS.
        assert browser.run("[isSecureContext, crossOriginIsolated]") == [False, False]
        for question in questions:
            text, ids = encode_prompt(tokenizer, get_prompt("plain"), question)
            engine.forget()
            written = decode_completion(tokenizer, engine.generate(ids, find_end_tokens(tokenizer), 256)[0]).strip()
            shown = ask(browser, question)
            assert shown["prompt"] == text
            before, after = "The answer is ", "."
            rationale, found, stated = written.rpartition(before)
            if found:
                assert shown["rationale"] == rationale.strip()
                answered += stated.removesuffix(after) in (question.choices or ())
                assert shown["answer"].rpartition(") ")[2] == stated.removesuffix(after)
            else:
                assert (shown["rationale"], shown["answer"]) == (written, "none is stated")
        assert browser.complaints() == []
    engine.close()
    assert answered == 4
    names = {"compat.js", "compat.wasm"} if compat else {"wllama.wasm"}
    assert {path.removeprefix("/") for path in asked} - names == {
        *("", "page.css", "page.js", "prompt.js", "wllama.js", STUDENT, "student.gguf"),
    }
