"""Write the table of values into the chart's README.md from the comments in values.yaml.

python helm/values_table.py            write it
python helm/values_table.py --check    exit with 1 where it is not up to date, or a value has no comment
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent / "lora-trainer"
BEGIN, END = "<!-- values: made by `make chart-docs` -->", "<!-- end of values -->"


def rows(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield each value's path, default as JSON and comment.

    Raises:
        ValueError: a value has no comment.
    """
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 (values.yaml is a mapping)
    yield from _rows(root, "", text.splitlines())


def _rows(mapping: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for key, value in mapping.value:
        path, comment = f"{prefix}{key.value}", _comment(lines, key.start_mark.line)
        if comment:
            default = yaml.safe_load(yaml.serialize(value))
            yield path, json.dumps(default), comment
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from _rows(value, f"{path}.", lines)
        else:
            raise ValueError(f"values.yaml: {path} has no comment")


def _comment(lines: list[str], line: int) -> str:
    """Return the comment that stands directly above a line."""
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.lstrip(" #") for text in lines[first:line])


def table(text: str) -> str:
    head = "| Value | Default | |\n|---|---|---|\n"
    return head + "".join(
        f"| `{path}` | `{default}` | {comment} |\n" for path, default, comment in rows(text)
    )


def main(arguments: list[str]) -> int:
    readme = CHART / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = f"{before}{BEGIN}\n{table((CHART / 'values.yaml').read_text())}{END}{after}"
    if arguments == ["--check"]:
        if fresh != text:
            print("the table of values in README.md is stale; run `make chart-docs`", file=sys.stderr)  # noqa: T201
        return int(fresh != text)
    readme.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
