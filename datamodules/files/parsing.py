"""JSON, YAML and parquet that others wrote: what is wrong with it is a ValueError of one line that names the place."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from datamodules.text.plain_text import describe_error

# Far more than any file of settings has; a few lines of aliases stand for billions.
MAX_NODES = 100_000
# Deeper than settings go; YAML's reader in C ends the process where its stack does.
MAX_DEPTH = 100
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in _TYPES)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# What YAML takes for another number than is seen: 010 is eight, 1:30 is ninety.
_OTHER_BASE = re.compile(r"[-+]?0[\d_]+|.*:.*")


def parse_json(content: str | bytes, place: object) -> Any:
    """Returns what JSON says.

    Args:
        content: The text, or its UTF-8.
        place: The file, or file and line, for the message.

    Raises:
        ValueError: It is no JSON, or is nested too deep, or a number in it is too long.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: cannot be read as JSON: {describe_error(error)}") from None


def parse_json_object(content: str | bytes, place: object) -> dict[str, Any]:
    """Likewise, where only an object makes sense."""
    record = parse_json(content, place)
    if not isinstance(record, dict):
        raise ValueError(f"{place}: expected a JSON object, found {type(record).__name__}")
    return record


def read_json(path: Path) -> Any:
    """Returns what a JSON file says; a ValueError names the file."""
    return parse_json(path.read_bytes(), path)


def read_json_object(path: Path) -> dict[str, Any]:
    """Likewise, where only an object makes sense."""
    return parse_json_object(path.read_bytes(), path)


class _Loader(yaml.SafeLoader):
    """Reads what JSON can say, too; a date is text, as on a command line."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - of the base class, which declares it so
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _check_node(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Returns how many values a node stands for, its aliases written out.

    Raises:
        ValueError: They are too many, it holds itself, has a key twice, a number that is another than it seems, or
            something that JSON cannot say.
    """
    if (size := sizes.get(id(node))) is not None:
        if size == 0:
            raise ValueError(f"line {node.start_mark.line + 1}: an alias stands for what it is in")
        return size
    sizes[id(node)] = 0
    if node.tag not in _TAGS:
        raise ValueError(f"line {node.start_mark.line + 1}: {node.tag} is no type of a setting")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for index, key in enumerate(keys) if key in keys[:index]), None):
            raise ValueError(f"line {node.start_mark.line + 1}: the key {twice!r} is there twice")
        children = [part for pair in node.value for part in pair]
    elif node.tag in _NUMBERS and _OTHER_BASE.fullmatch(node.value):
        raise ValueError(
            f"line {node.start_mark.line + 1}: YAML reads {node.value} in another base than ten; write the number "
            "without a leading 0 or colons, or a text in quotes"
        )
    elif any("\ud800" <= character <= "\udfff" for character in node.value):
        raise ValueError(f"line {node.start_mark.line + 1}: {node.value!r} holds half a surrogate pair")
    size = 1 + sum(_check_node(child, sizes) for child in children)
    if size > MAX_NODES:
        raise ValueError(f"its aliases stand for more than {MAX_NODES} values")
    sizes[id(node)] = size
    return size


def check_depth(text: str) -> None:
    """Raises a ValueError if YAML is nested too deep to be read; what is malformed is left to who reads it."""
    depth = 0
    with suppress(yaml.YAMLError):
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"{text[:20]!a}... is nested deeper than {MAX_DEPTH}")


def read_yaml(path: Path) -> Any:
    """Returns what a YAML file says: nothing but what JSON can say.

    Raises:
        ValueError: It cannot be read, is malformed, has a key twice, or aliases that lead back or stand for too much.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, {})
        return loader.construct_document(node)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: malformed YAML: {describe_error(error)}") from None


def read_key_lines(path: Path) -> dict[str, int]:
    """Returns the line of each key of a YAML file that `read_yaml` takes, by dotted name."""
    lines = dict[str, int]()

    def walk(node: yaml.Node | None, above: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                lines[f"{above}{key.value}"] = key.start_mark.line + 1
                walk(value, f"{above}{key.value}.")

    walk(_Loader(path.read_text(encoding="utf-8")).get_single_node(), "")
    return lines


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises over a file into a ValueError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as parquet: {describe_error(error)}") from None
