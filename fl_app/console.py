"""What ``fl-app run`` shows while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fl_app.privacy_words import as_bound

WIDTH = 80
_MAX_NAMED_DROPOUTS = 10
_UNITS = ("kB", "MB", "GB", "TB")


class Progress:
    """Shows the lines of ``rounds.jsonl`` as they come; a context manager.

    On a terminal every round is a line above a bar; otherwise the same lines are written, without control codes.
    """

    def __init__(self, rounds: int, clients: int, *, stream: TextIO | None = None) -> None:
        """``rounds`` and ``clients`` are those of the whole run; ``stream`` is standard error by default."""
        self._rounds, self._clients = rounds, clients
        self._stream = sys.stderr if stream is None else stream
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task("", total=self._rounds)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def is_live(self) -> bool:
        """Whether there is a bar, on a terminal."""
        return self._bar is not None

    def status(self, text: str) -> None:
        """Say what goes on until the next round, such as ``starting Flower ...``."""
        if self._bar is None:
            self._print(text)
        else:
            self._bar.update(self._task, description=text, refresh=True)

    def round(self, line: Mapping[str, Any]) -> None:
        """Show one object of ``rounds.jsonl``."""
        self.line(round_line(line, self._rounds, self._clients), line["round"])

    def line(self, text: str, completed: int) -> None:
        """Show a line for good, and how much is completed."""
        if self._bar is None:
            self._print(text)
        else:
            self._bar.update(self._task, completed=completed, description="training")
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def round_line(line: Mapping[str, Any], rounds: int, clients: int) -> str:
    """One object of ``rounds.jsonl`` for a person, at most 80 columns wide.

    For example ``round 7/20  12 of 12 clients  accuracy 0.914  log_loss 0.231  up 0.6 MB  3.1 s``. The second metric
    and then the bytes are left out where they do not fit. Dropped clients follow on lines of their own, each with its
    reason. ``clients`` stands in for a cohort whose size the line does not tell.
    """
    first, second = _metrics(line)
    up = f"up {human_bytes(line['bytes_up'])}" if line.get("bytes_up") is not None else ""
    epsilon = f"epsilon {as_bound(line['epsilon'])}" if line.get("epsilon") is not None else ""
    seconds = f"{line['seconds']['total']:.1f} s"
    head = [f"round {line['round']}/{rounds}", _cohort(line, clients), first]
    text = ""
    for optional in ([second, epsilon, up], [epsilon, up], [epsilon]):
        text = "  ".join(part for part in [*head, *optional, seconds] if part)
        if len(text) <= WIDTH:
            break
    # Who was over-selected and not needed is in rounds.jsonl: it happens in every round, and is no fault.
    dropped = [drop for drop in line.get("dropped") or () if drop["reason"] != "late"]
    return "\n".join([text[:WIDTH], *_dropped(dropped)])


def human_bytes(count: int) -> str:
    """A number of bytes in the largest decimal unit of which it is at least a tenth: ``64 B``, ``0.6 MB``."""
    if count < 100:
        return f"{count} B"
    power = min(int(math.log10(count * 10) / 3), len(_UNITS))
    return f"{count / 1000**power:.1f} {_UNITS[power - 1]}"


def _cohort(line: Mapping[str, Any], clients: int) -> str:
    expected = line.get("expected_clients")
    if line.get("good") is None:  # a secret cohort: its size stays in the server
        return "" if expected is None else f"~{expected} of {clients} clients"
    retried = " (retried)" if line.get("attempts", 1) > 1 else ""
    return f"{line['good']} of {clients if expected is None else expected} clients{retried}"


def _metrics(line: Mapping[str, Any]) -> tuple[str, str]:
    """The main metric and the one after it, in words; empty where there is none.

    Where the round was not evaluated, those of the model that it began with, marked `before`.
    """
    prefix, metrics = ("", line["metrics"]) if line.get("metrics") else ("before: ", line.get("train_metrics") or {})
    known = [name for name, value in metrics.items() if value is not None]
    known.sort(key=lambda name: name != "accuracy")  # stable: accuracy first, then as they come
    texts = [f"{name} {short_number(metrics[name])}" for name in known[:2]]
    first, second = (*texts, "", "")[:2]
    return prefix + first if first else "", second


def short_number(value: float) -> str:
    """Three decimals, or three digits where these say more."""
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 or value == 0 else f"{value:.3g}"


def _dropped(dropped: Sequence[Mapping[str, str]]) -> list[str]:
    if not dropped:
        return []
    named = ", ".join(f"{drop['client']} ({drop['reason']})" for drop in dropped[:_MAX_NAMED_DROPOUTS])
    more = len(dropped) - _MAX_NAMED_DROPOUTS
    text = f"dropped: {named}" + (f" and {more} more, all in rounds.jsonl" if more > 0 else "")
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
