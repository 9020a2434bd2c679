"""Plain decimals in bytes to doubles, all cells of a block at once; each is the double that float() gives."""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Positions = NDArray[np.intp]

WIDTH = 24  # characters of a cell that are looked at: three words of eight
_AT_ONCE = 4096  # cells, whose windows of 24 characters stay in the cache
_INTEGERS = 10 ** np.arange(19, dtype=np.uint64)
_POWERS = np.array([float(10**places) for places in range(23)])  # a double holds each exactly
_MASKS = (np.arange(WIDTH) >= WIDTH - np.arange(WIDTH + 1)[:, None]) * np.uint8(0xFF)  # row n: the last n of 24


def decimals(
    text: bytes, starts: Positions, ends: Positions, mark: str = "."
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The numbers in the cells text[starts[i]:ends[i]], which lie one after the other: values (m,) and known (m,).

    Known are the cells [+-]digits[.digits], with `mark` as the point, of up to 24 characters and 18 digits whose
    rounding is certain. Any other, be it 1e-5, "", text or a number too near to the middle of two doubles, has known
    False and a meaningless value.
    """
    values, known = np.empty(len(ends)), np.empty(len(ends), np.bool_)
    for begin in range(0, len(ends), _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        origin, stop = starts[part][0], ends[part][-1]
        values[part], known[part] = _parse(text[origin : stop + 1], starts[part] - origin, ends[part] - origin, mark)
    return values, known


def _parse(text: bytes, starts: Positions, ends: Positions, mark: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """`decimals` of a few thousand cells."""
    codes = np.frombuffer(text, np.uint8)
    first = codes[np.minimum(starts, len(codes) - 1)]
    length = ends - starts - ((first == ord("-")) | (first == ord("+")))
    dotted, places = _dots(codes == ord(mark), starts, ends)
    number, strange = _digits(text, ends, np.clip(length, 0, WIDTH))
    # The dot stood as a digit 0 between whole part and fraction: whole * 10**(places + 1) + fraction. It is cut out.
    # With 18 places and more, whole is 0.
    power = _INTEGERS[np.minimum(places, 18)]
    mantissa = np.where(dotted, number - number // (power * np.uint64(10)) * (power * np.uint64(9)), number)
    values, certain = _divide(mantissa.astype(np.int64), _POWERS[np.minimum(places, 22)])
    np.negative(values, out=values, where=first == ord("-"))
    known = certain & (strange == dotted) & (length > dotted) & (length <= WIDTH) & (places <= 22)
    return values, known & (number < _INTEGERS[18])


def _dots(is_dot: NDArray[np.bool_], starts: Positions, ends: Positions) -> tuple[NDArray[np.bool_], Positions]:
    """Which cells have a dot, and how many characters follow the last one."""
    dots = np.flatnonzero(is_dot)
    cells = np.searchsorted(ends, dots)
    inside = (cells < len(ends)) & (dots >= starts[np.minimum(cells, len(ends) - 1)])
    dots, cells = dots[inside], cells[inside]
    dotted, places = np.zeros(len(ends), np.bool_), np.zeros(len(ends), np.intp)
    dotted[cells] = True
    places[cells] = ends[cells] - dots - 1
    return dotted, places


def _digits(text: bytes, ends: Positions, length: Positions) -> tuple[Words, NDArray[np.uint8]]:
    """The last `length` characters of each cell as one whole number, and how many of them are no digits but count as 0.

    A number of more than 18 digits comes out as 10**18 or more.
    """
    windows = np.ndarray(len(text) + 1, f"V{WIDTH}", b" " * WIDTH + text, strides=(1,))
    characters = windows[ends].view(np.uint8)
    mask = _MASKS.view(f"V{WIDTH}").ravel()[length].view(np.uint8)
    digit = characters - np.uint8(ord("0"))
    is_digit = digit < 10
    strange = np.bitwise_count((mask & (is_digit - np.uint8(1))).view("<u8")).reshape(-1, 3)
    words = _eight((digit * is_digit & mask).view("<u8")).reshape(-1, 3)
    # 100 times 10**16 are too many already; more might not fit.
    number = np.minimum(words[:, 0], 100) * np.uint64(10**16) + words[:, 1] * np.uint64(10**8) + words[:, 2]
    return number, (strange[:, 0] + strange[:, 1] + strange[:, 2]) // 8


def _eight(word: Words) -> Words:
    """Eight digits 0 to 9 in the bytes of a little-endian word as one number: pairs, then fours, then all eight."""
    word = word * np.uint64(10) + (word >> np.uint64(8))
    pairs = np.uint64(0x000000FF000000FF)
    outer = (word & pairs) * np.uint64(100 + (10**6 << 32))
    inner = ((word >> np.uint64(16)) & pairs) * np.uint64(1 + (10**4 << 32))
    return (outer + inner) >> np.uint64(32)


def _divide(mantissa: NDArray[np.int64], power: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """mantissa / power rounded once, and whether that is certain. power: a power of ten that a double holds exactly.

    Below 2**53 both are exact, and so is one division's rounding. Else the quotient's error comes from its exact
    remainder (T. J. Dekker, doi:10.1007/BF01397083) to a relative error under 2**-50; where an error of 2**-40 of it
    could turn the rounding, it is not certain.
    """
    rounded = mantissa.astype(np.float64)
    quotient = rounded / power
    if not len(mantissa) or mantissa.max() < 2**53:
        return quotient, np.ones(len(mantissa), np.bool_)
    lost = (mantissa - rounded.astype(np.int64)).astype(np.float64)
    product = quotient * power
    (q1, q2), (p1, p2) = _halves(quotient), _halves(power)
    excess = ((q1 * p1 - product) + q1 * p2 + q2 * p1) + q2 * p2
    error = ((rounded - product) - excess + lost) / power
    value = quotient + error
    return value, (quotient + error * (1 + 2**-40) == value) & (quotient + error * (1 - 2**-40) == value)


def _halves(number: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A double as the sum of two of 26 bits each."""
    wide = number * float(2**27 + 1)
    upper = wide - (wide - number)
    return upper, number - upper
