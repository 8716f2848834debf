"""llama.cpp for browsers: wllama, from the user's own npm folder, and nothing but the files that are known here."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.files.atomic import hash_path
from datamodules.files.parsing import read_json_object

VERSION = "3.13.0"


@dataclass(frozen=True)
class Package:
    """An npm package that a page's files come from.

    Attributes:
        name: On npm.
        setting: Which names its folder.
        files: By their name in a page's folder, their name in the package, and their SHA-256.
    """

    name: str
    setting: str
    files: dict[str, tuple[str, str]]


WLLAMA = Package(
    "@wllama/wllama",
    "--runtime",
    {
        "wllama.js": ("esm/index.min.js", "e7f3745ee508c111c22d178d23c52cc74016dd8cec39e4600d87e28d287d7981"),
        "wllama.wasm": ("esm/wasm/wllama.wasm", "79ac5be917b71d50571a4f584436a9f6baf6b6e57719d094ed8bd950e9a65780"),
        "LICENCE": ("LICENCE", "5866e3bd7e3cbd3f7c8bea6efd8a1e7fa7cc8de68c30f428aff7c6584a0fb720"),
    },
)
# For browsers whose WebAssembly cannot suspend, or has no 64-bit memory, such as Safari.
COMPAT = Package(
    "@wllama/wllama-compat",
    "--compat",
    {
        "compat.js": ("wasm/wllama.js", "942062a7495790a317061b27a6bcd2bd3b247e2ddef53a069baf5abb07284758"),
        "compat.wasm": ("wasm/wllama.wasm", "35df8c1e2f7dbd74b8e8b01054fb9f1fbe86cf566945fbf4cef3965855a8b92e"),
    },
)


def find_files(folder: Path, package: Package) -> dict[str, Path]:
    """Returns a package's files by their names in a page's folder.

    Raises:
        ValueError: The folder does not hold this package, in the version that is known here, as it was published.
    """
    advice = f"fetch it with: npm install {package.name}@{VERSION}"
    if not (folder / "package.json").is_file():
        raise ValueError(f"{package.setting}: {folder} holds no {package.name}; {advice}")
    own = read_json_object(folder / "package.json")
    if (own.get("name"), own.get("version")) != (package.name, VERSION):
        found = f"{own.get('name')} {own.get('version')}"
        raise ValueError(f"{package.setting}: {folder} holds {found}, not {package.name} {VERSION}; {advice}")
    for path, known in package.files.values():
        if not (folder / path).is_file() or hash_path(folder / path) != known:
            raise ValueError(
                f"{package.setting}: {folder / path} is not as {package.name} {VERSION} was published; {advice}"
            )
    return {name: folder / path for name, (path, _) in package.files.items()}
