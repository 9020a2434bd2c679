"""Numbers and names as a person reads them."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

MINUS = "\N{MINUS SIGN}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
DASH = "\N{EN DASH}"
NONE = DASH
_UNITS = ("B", "kB", "MB", "GB", "TB")


def percent(value: float) -> str:
    """A share with one decimal: ``94.5 %``."""
    return _minus(f"{100 * value:.1f}") + " %"


def significant(value: float) -> str:
    """Three significant digits: ``0.123``, ``2,910``, ``1e-5`` (with a real minus)."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    power = int(exponent)
    if not -4 <= power < 6:
        return f"{float(mantissa):g}e{power}".replace("-", MINUS)
    return _minus(f"{float(f'{value:.3g}'):,.{max(0, 2 - power)}f}")


def signed(text: str) -> str:
    """A difference that is written with its sign, unless it is nothing."""
    return text if text.startswith(MINUS) or not any(digit in text for digit in "123456789") else f"+{text}"


def count(value: float) -> str:
    """A whole number with thousands apart."""
    return _minus(f"{value:,.0f}")


def counted(value: int, noun: str) -> str:
    """``1 round``, ``2,000 rounds``."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def duration(seconds: float) -> str:
    """``6.5 ms``, ``443 ms``, ``12.9 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.{0 if seconds >= 0.00995 else 1}f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count_: float) -> str:
    """Bytes in decimal units with three significant digits: ``64 B``, ``35.4 kB``, ``1.20 GB``."""
    unit, bytes_ = unit_of(count_)
    return f"{count_:.0f} B" if bytes_ == 1 else f"{significant(count_ / bytes_)} {unit}"


def unit_of(count_: float) -> tuple[str, int]:
    """The unit in which so many bytes are written, and its bytes: ``("kB", 1000)``."""
    power = 0
    while count_ / 1000**power >= 999.5 and power < len(_UNITS) - 1:
        power += 1
    return _UNITS[power], 1000**power


def shorten(value: object, longest: int = 64) -> str:
    """Text of at most `longest` characters; a longer one loses its middle."""
    text = str(value)
    if len(text) <= longest:
        return text
    tail = longest // 3
    return text[: longest - tail - 1] + ELLIPSIS + text[len(text) - tail :]


def ranges(numbers: Iterable[int], most: int = 12) -> str:
    """Rounds in short: ``1-3, 7`` with a real dash; after `most` parts, how many rounds remain."""
    ordered = sorted(set(numbers))
    parts = list(_runs(ordered))
    texts = [str(a) if a == b else f"{a}{DASH}{b}" for a, b in parts[:most]]
    left = sum(b - a + 1 for a, b in parts[most:])
    return ", ".join(texts) + (f" and {count(left)} more" if left else "")


def _runs(ordered: Sequence[int]) -> Iterable[tuple[int, int]]:
    if not ordered:
        return []
    breaks = [(a, b) for a, b in pairwise(ordered) if b > a + 1]
    starts = [ordered[0], *(b for _, b in breaks)]
    ends = [*(a for a, _ in breaks), ordered[-1]]
    return zip(starts, ends, strict=True)


def _minus(text: str) -> str:
    """With a real minus, and none before a nought."""
    if not text.startswith("-"):
        return text
    return MINUS + text[1:] if any(digit in text for digit in "123456789") else text[1:]


def step_decimals(step: float) -> int:
    """How many decimals tell the multiples of a step of 1, 2 or 5 times a power of ten apart."""
    return max(0, -math.floor(math.log10(step) + 1e-9))
