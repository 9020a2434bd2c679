"""The bytes of a CSV file as blocks of whole lines, checked to be text in UTF-8; and how its faults are told."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 1 << 17  # bytes read at once
_LONGEST_LINE = 1 << 24
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or another zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "a gzip file",
    b"\xff\xfe": "text in UTF-16, not UTF-8",
    b"\xfe\xff": "text in UTF-16, not UTF-8",
}


class CsvError(ValueError):
    """What is wrong with a file, in one line: `<path>, line N: what: remedy`."""

    def __init__(self, path: Path, line: int | None, what: str, remedy: str) -> None:
        place = str(path) if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {what}: {remedy}")
        self._parts = path, line, what, remedy

    def __reduce__(self) -> tuple[type["CsvError"], tuple[Path, int | None, str, str]]:
        """From the parts: a client's process may send it to another."""
        return type(self), self._parts


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines, of which the first has this number; each ends in a line feed."""

    line: int
    text: bytes


def quoted(text: str) -> str:
    """A text of the file for a message: on one line, without control characters, 40 characters at most."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def text_blocks(path: Path) -> Iterator[Block]:
    """The file in pieces that end where a line does, all line ends made line feeds, checked to be text in UTF-8."""
    line, rest = 1, b""
    for chunk in _chunks(path):
        text = rest + (chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk)
        cut = text.rfind(b"\n") + 1
        text, rest = text[:cut], text[cut:]
        if len(rest) > _LONGEST_LINE:
            raise CsvError(path, line, f"a line of more than {_LONGEST_LINE} bytes", "expected one row a line")
        if text:
            _check_text(path, line, text)
            yield Block(line, text)
            line += text.count(b"\n")
    if rest:
        _check_text(path, line, rest)
        yield Block(line, rest + b"\n")


def _chunks(path: Path) -> Iterator[bytes]:
    """The file in pieces, without a byte order mark; none ends between the two bytes of a line end."""
    try:
        with path.open("rb") as file:
            chunk = file.read(_BLOCK)
            for magic, kind in _FOREIGN.items():
                if chunk.startswith(magic):
                    raise CsvError(path, 1, f"this looks like {kind}", "export it as CSV in UTF-8")
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")
            while chunk:
                while chunk.endswith(b"\r") and (more := file.read(1)):
                    chunk += more
                yield chunk
                chunk = file.read(_BLOCK)
    except FileNotFoundError:
        raise CsvError(path, None, "there is no such file", "check the path") from None
    except IsADirectoryError:
        raise CsvError(path, None, "this is a directory", "name one CSV file in it") from None
    except PermissionError:
        raise CsvError(path, None, "this process may not read the file", "change its permissions") from None
    except OSError as error:
        raise CsvError(path, None, f"the file cannot be read ({error.strerror})", "check the path") from None


def _check_text(path: Path, line: int, text: bytes) -> None:
    """Raises CsvError for NUL bytes and what is not UTF-8, with the line of the first such byte."""
    if (place := text.find(b"\0")) >= 0:
        what = "a NUL byte, which no text has"
        raise CsvError(path, line + text.count(b"\n", 0, place), what, "export the file as CSV in UTF-8")
    if text.isascii():
        return
    try:
        text.decode()
    except UnicodeDecodeError as error:
        what = "this is not UTF-8 but, it seems, Latin-1 or Windows-1252"
        raise CsvError(path, line + text.count(b"\n", 0, error.start), what, "save the file as UTF-8") from None
