"""docs/deployment.md as a script: what it has people type."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def section(title: str, language: str) -> str:
    """The one block of code in this language below a heading of docs/deployment.md."""
    below = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", below, re.MULTILINE | re.DOTALL)
    return str(block)


def steps() -> list[tuple[str, list[str]]]:
    """The commands of docs/deployment.md, each with its machine; `then` is what people carry between machines."""
    found: list[tuple[str, list[str]]] = []
    where = ""
    for line in section("A server and two sites, step by step", "sh").splitlines():
        if line.startswith("# "):
            where = re.split(r"\W", line[2:])[0]
            found += [(where, [])] if where == "then" else []
        elif line:
            program, *words = line.split()
            assert program == "fl-app"
            found.append((where, words))
    return found
