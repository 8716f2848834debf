import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import reference
from tests.docs.pages import PAGES, ROOT

MAX_FILES = 12


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    paths = [link.split("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert [path for path in paths if not (page.parent / path).exists()] == []


def test_a_site_has_every_page_in_reach_of_its_first() -> None:
    docs = ROOT / "docs"
    reached, ahead = set[Path](), [docs / "index.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())
        ahead += {(page.parent / link).resolve() for link in links if not link.startswith("http")} - reached
    assert {path for path in docs.rglob("*.md")} - reached == set()


def test_readme_is_one_screen_of_reading() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_walk_enters_at_most_twelve_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    walk = text.partition("## One question, from file to loss")[2]
    numbered = re.findall(r"^\d+\. \[(\S+)\]\((\S+)\)", walk, re.MULTILINE)
    assert 0 < len(numbered) <= MAX_FILES
    for name, link in numbered:
        assert (ROOT / "docs" / link).resolve() == ROOT / name
    # What the walk calls by name is there.
    for name, entry in zip(
        [name for name, _ in numbered], re.split(r"^\d+\. ", walk, flags=re.MULTILINE)[1:], strict=True
    ):
        source = (ROOT / name).read_text()
        code = re.findall(r"`([A-Za-z_.]+)`", entry.split("\n\n")[0])
        assert [word for word in code if word.split(".")[-1] not in source and not word.startswith("Trainer.")] == []


def test_the_reference_is_what_the_code_says() -> None:
    pages = reference.render()
    written = {path.relative_to(reference.REFERENCE).as_posix(): path for path in reference.REFERENCE.rglob("*.md")}
    stale = [name for name in {*pages, *written} - {"index.md"} if name not in written or name not in pages]
    stale += [name for name in {*pages} & {*written} if written[name].read_text() != pages[name]]
    assert stale == [], "python -m scripts.reference writes them anew"


def test_a_settings_table_has_what_it_takes_and_means() -> None:
    page = reference.render()["fit.md"]
    assert "| `data.supervision` | " in page
    # A class that a setting takes has its own settings, with their defaults; markup in a docstring is text.
    assert "## Adapter, for `model.adapter`" in page and "| `r` | PositiveInt | `8` | Rank. |" in page
    assert reference.escape("a_b <c> | `d_e <f>`") == r"a\_b &lt;c&gt; \| `d_e <f>`"


@pytest.mark.slow
def test_the_site_builds_without_a_dead_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    # A link to a source file leads to what the reference says of it.
    walk = (tmp_path / "architecture.html").read_text()
    [anchor] = set(re.findall(r'href="reference/modules/losses.html#(losses\w*distillationpy)"', walk))
    assert f'id="{anchor}"' in (tmp_path / "reference" / "modules" / "losses.html").read_text()


def test_pre_commit_does_what_make_check_does() -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    made = [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in repository["hooks"]] == made
