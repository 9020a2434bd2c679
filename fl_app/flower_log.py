"""Reading Flower's log of a run: the run's number, where its results are, and in one line why it failed."""

import re
from pathlib import Path

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Successfully started run (\d+)")
_WRAPPERS = ("An error was encountered. Outcome simulation.", "Simulation Runtime crashed.")


class FlowerLog:
    """The part of Flower's log file that is written after this object was made, and what can be learned from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def append(self, other: Path) -> None:
        """Append the content of another log file, which is about to be removed with its folder."""
        with self.path.open("ab") as log:
            log.write(f"\n--- {other.name} ---\n".encode() + other.read_bytes())

    def run_id(self) -> str | None:
        """The run's number at the SuperLink, once it was submitted."""
        match = re.search(_STARTED, self._text())
        return match and match[1]

    def earlier_run_id(self) -> str | None:
        """The number of the run before, whose log this file already held; None where it held none."""
        earlier = self.path.read_bytes()[: self._start] if self._start else b""
        found = re.findall(_STARTED, earlier.decode(errors="replace"))
        return found[-1] if found else None

    def results(self) -> str | None:
        """The folder in which the ServerApp said that it puts its results."""
        match = re.search(r"results in (.+)", self._text())
        return match and match[1].strip()

    def reason(self) -> str | None:
        """Flower's own word on why the run failed, in one line; None when it says nothing."""
        text = self._text()
        if refusal := re.search(r"Could not start run: (.+)", text):
            return refusal[1].strip()
        if report := re.search(r"Exit Code: \d+\s+(.+)", text):
            return _last_exception(text[: report.start()]) or report[1].strip()
        if box := re.findall(r"^│ (.+?) *│$", text, re.MULTILINE):
            return " ".join(box)
        return None

    def _text(self) -> str:
        with self.path.open("rb") as log:
            log.seek(self._start)
            return _COLOUR.sub("", log.read().decode(errors="replace"))


def _last_exception(text: str) -> str | None:
    """The line that names the exception, of the last traceback that is not only Flower's wrapping of another one."""
    tracebacks = re.findall(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(\S.*)", text, re.MULTILINE)
    own = [line for line in tracebacks if not line.endswith(_WRAPPERS)]
    return own[-1] if own else None
