"""Every array in as few bytes as its content needs, all of them in one stream."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.transform import Opens, Round, Transform
from strategies.transforms import golomb_rice
from strategies.transforms.payload import check_payload
from strategies.update import Arrays, InvalidUpdate, Template, Update

VERSION = 1
RAW, DEFLATE, POSITIONS = range(3)
HEAD = 5  # of an array: its method, and the length of what follows in 4 bytes

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class EntropyCoding(Transform):
    """All arrays as one vector of bytes, the last step before the wire: exact, and about as short as their entropy.

    The stream is a version byte and, for each array, a byte for the method, the length and the shortest of

    - the elements as they are,
    - zlib at level 1, all first bytes of the elements, then all second ones: exponents compress apart from digits,
    - for uint32 that ascend, as positions do, Golomb-Rice (arXiv:1903.02891): the digits r, then the code.

    With `padded` the length is the same whatever the content is, so that nobody can read from it: zlib is not used, and
    positions take what those of the same number that end with the same last one can take at most, about 6 % more.

    Decoding allocates at most 40 bytes for each byte of the arrays to be decoded, whatever the stream claims.
    """

    padded: bool = False
    opens: ClassVar[Opens] = Opens.EACH

    def tells_length(self) -> bool:
        """Unless padded."""
        return not self.padded

    def encodes(self, template: Template) -> Template:
        """(bytes,) uint8: the most that it can be."""
        most = 1 + sum(HEAD + _nbytes(entry) for entry in template)
        return (((most,), np.dtype(np.uint8)),)

    def encode(self, update: Update, state: Arrays, round: Round) -> tuple[Update, Arrays]:
        """Packs."""
        parts = [np.array([VERSION], np.uint8)]
        for array in update.arrays:
            method, body = self._shortest(np.ascontiguousarray(array).reshape(array.shape))
            parts += [np.frombuffer(bytes([method]) + body.size.to_bytes(4, "little"), np.uint8), body]
        return replace(update, arrays=(np.concatenate(parts),)), state

    def decode_each(self, update: Update, round: Round) -> Update:
        """Unpacks. Raises InvalidUpdate("decode") for another version, and for bytes too few or too many."""
        ((most,), _) = self.encodes(round.template)[0]
        stream = update.arrays[0] if len(update.arrays) == 1 else np.zeros((0, 0))
        if stream.dtype != np.uint8 or stream.ndim != 1 or not 1 <= stream.size <= most:
            raise InvalidUpdate("decode", f"expected one vector of at most {most} bytes")
        if stream[0] != VERSION:
            raise InvalidUpdate("decode", f"an entropy code of version {stream[0]}, expected {VERSION}")
        sections = _sections(np.ascontiguousarray(stream), len(round.template))
        arrays = tuple(
            self._opened(method, body, entry) for (method, body), entry in zip(sections, round.template, strict=True)
        )
        check_payload(arrays, round.template)
        return replace(update, arrays=arrays)

    def _shortest(self, array: NDArray[Any]) -> tuple[int, Bytes]:
        ways = {RAW: _bytes_of(array)}
        if _ascends(array):
            ways[POSITIONS] = self._positions(array)
        elif not self.padded:
            ways[DEFLATE] = _deflated(array)
        method = min(ways, key=lambda way: ways[way].size)
        return method, ways[method]

    def _positions(self, array: NDArray[np.uint32]) -> Bytes:
        if not self.padded:
            digits = golomb_rice.best_digits(array)
            return _with_digits(digits, golomb_rice.encode(array, digits))
        count, last = array.size, int(array[-1])
        digits = golomb_rice.best_digits_for(count, last)
        code = golomb_rice.encode(array, digits)
        padding = np.zeros(golomb_rice.most_bytes(count, last, digits) - code.size, np.uint8)
        return _with_digits(digits, np.concatenate([code, padding]))

    def _opened(self, method: int, body: Bytes, entry: tuple[tuple[int, ...], np.dtype[Any]]) -> NDArray[Any]:
        """One array. Raises InvalidUpdate("decode")."""
        shape, dtype = entry
        if body.size > _nbytes(entry):
            raise InvalidUpdate("decode", f"{body.size} bytes for an array of {_nbytes(entry)}")
        if method == RAW and body.size == _nbytes(entry):
            return np.frombuffer(body.tobytes(), dtype).reshape(shape)
        if method == DEFLATE and not self.padded:
            planes = np.frombuffer(_inflated(body, _nbytes(entry)), np.uint8).reshape(dtype.itemsize, -1)
            return np.ascontiguousarray(planes.T).reshape(-1).view(dtype).reshape(shape)
        if method == POSITIONS and dtype == np.uint32 and len(shape) == 1 and shape[0] and body.size:
            return self._opened_positions(body, shape[0])
        raise InvalidUpdate("decode", f"an array that method {method} does not give")

    def _opened_positions(self, body: Bytes, count: int) -> NDArray[np.uint32]:
        digits = int(body[0])
        positions = golomb_rice.decode(body[1:], count, digits)
        if self.padded:
            expected = golomb_rice.most_bytes(count, int(positions[-1]), digits)
        else:
            expected = golomb_rice.length(positions, digits)
        if body.size != 1 + expected:
            raise InvalidUpdate("decode", f"{body.size} bytes of positions, expected {1 + expected}")
        return positions


def _sections(stream: Bytes, count: int) -> Iterator[tuple[int, Bytes]]:
    """Method and bytes of each array. Raises InvalidUpdate("decode") unless they are all of the stream."""
    start = 1
    for _ in range(count):
        stop = start + HEAD + int.from_bytes(stream[start + 1 : start + HEAD].tobytes(), "little")
        if stop > stream.size:
            raise InvalidUpdate("decode", "the stream ends too early")
        yield int(stream[start]), stream[start + HEAD : stop]
        start = stop
    if start != stream.size:
        raise InvalidUpdate("decode", f"{stream.size - start} bytes behind the last array")


def _deflated(array: NDArray[Any]) -> Bytes:
    """Runs and frequencies only (Z_RLE): to seek other repetitions doubles the time, and noise has none."""
    planes = _bytes_of(array).reshape(-1, array.dtype.itemsize).T
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return np.frombuffer(packer.compress(planes.tobytes()) + packer.flush(), np.uint8)


def _inflated(body: Bytes, size: int) -> bytes:
    """Exactly `size` bytes; no more are ever unpacked. Raises InvalidUpdate("decode")."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(body.tobytes(), size + 1)
    except zlib.error as error:
        raise InvalidUpdate("decode", f"no zlib stream: {error}") from error
    if len(unpacked) != size or not unpacker.eof or unpacker.unused_data:
        raise InvalidUpdate("decode", f"a zlib stream that does not end with {size} bytes")
    return unpacked


def _ascends(array: NDArray[Any]) -> bool:
    """Whether it can be positions."""
    ascending = array.dtype == np.uint32 and array.ndim == 1 and array.size > 0
    return ascending and not (array[1:] <= array[:-1]).any()


def _with_digits(digits: int, code: Bytes) -> Bytes:
    return np.concatenate([np.array([digits], np.uint8), code])


def _bytes_of(array: NDArray[Any]) -> Bytes:
    return np.frombuffer(array.tobytes(), np.uint8)


def _nbytes(entry: tuple[tuple[int, ...], np.dtype[Any]]) -> int:
    shape, dtype = entry
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
