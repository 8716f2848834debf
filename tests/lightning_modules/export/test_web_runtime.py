"""Tests of what is taken for the runtime: nothing but the known version's own files."""

import json
from pathlib import Path

import pytest

from datamodules.files.atomic import hash_path
from lightning_modules.export.web_runtime import COMPAT, VERSION, WLLAMA, Package, find_files


def install(folder: Path, name: str = "@x/x", version: str = VERSION) -> Package:
    """Writes a package of one file, and returns what is known of it."""
    (folder / "esm").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    (folder / "esm" / "a.js").write_text("1")
    return Package("@x/x", "--runtime", {"x.js": ("esm/a.js", hash_path(folder / "esm" / "a.js"))})


def test_a_packages_files_have_names_of_their_own(tmp_path: Path) -> None:
    package = install(tmp_path / "x")
    assert find_files(tmp_path / "x", package) == {"x.js": tmp_path / "x" / "esm" / "a.js"}
    assert WLLAMA.files.keys().isdisjoint(COMPAT.files)


def test_another_package_version_or_content_is_refused(tmp_path: Path) -> None:
    advice = rf"npm install @x/x@{VERSION}$"
    package = install(tmp_path / "x")
    with pytest.raises(ValueError, match=f"--runtime: .*none holds no @x/x; .*{advice}"):
        find_files(tmp_path / "none", package)
    for name, version in (("@x/x", "0.1"), ("y", VERSION)):
        install(tmp_path / name, name, version)
        with pytest.raises(ValueError, match=f"holds {name} {version}, not @x/x {VERSION}; .*{advice}"):
            find_files(tmp_path / name, package)
    (tmp_path / "x" / "esm" / "a.js").write_text("2")
    with pytest.raises(ValueError, match=f"a.js is not as @x/x {VERSION} was published; .*{advice}"):
        find_files(tmp_path / "x", package)
    (tmp_path / "x" / "esm" / "a.js").unlink()
    with pytest.raises(ValueError, match="is not as"):
        find_files(tmp_path / "x", package)
