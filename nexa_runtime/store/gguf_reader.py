"""The bytes of a GGUF header in order, and its values, within bounds.

Owns every bound that keeps a hostile header from costing time or memory: nothing is read because the file
says it is there. It knows nothing of models. ``gguf`` alone reads through it.
"""

from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO

MAX_HEADER_BYTES = 512 * 1024**2
MAX_STRING_BYTES = 16 * 1024**2
MAX_KEY_BYTES = 64 * 1024
MAX_KEPT_BYTES = 64 * 1024**2
"""All texts and short arrays together. What is skipped does not count."""
MAX_ARRAY_STRINGS = 4_000_000
"""In all arrays together: each text must be looked at to find the next."""
MAX_NESTED_ARRAYS = 100_000
MAX_ARRAY_DEPTH = 4
MAX_KEPT_NUMBERS = 1024
MAX_KEPT_STRINGS = 64

_CHUNK_BYTES = 1024**2
_VALUE_BYTES = 64
"""About what Python needs for a small value."""

_U32 = Struct("<I")
_U64 = Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: Struct("<B"), 1: Struct("<b"), 2: Struct("<H"), 3: Struct("<h"), 4: _U32, 5: Struct("<i"),
    6: Struct("<f"), 7: Struct("<?"), 10: _U64, 11: Struct("<q"), 12: Struct("<d"),
}  # fmt: skip


class Fault(Exception):
    """Why a file is refused: the rest of a sentence that begins with the file."""


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array of the metadata that was skipped."""

    length: int


def read_value(reader: "HeaderReader") -> object:
    """A value of the metadata: its type, then itself."""
    value_type = reader.u32()
    scalar = _SCALARS.get(value_type)
    if scalar is not None:
        return scalar.unpack(reader.take(scalar.size))[0]
    if value_type == _STRING:
        return reader.string().decode(errors="replace")
    if value_type == _ARRAY:
        return _read_array(reader, 1)
    raise Fault("has metadata of an unknown type")


def _read_array(reader: "HeaderReader", depth: int) -> object:
    if depth > MAX_ARRAY_DEPTH:
        raise Fault(f"has arrays nested deeper than {MAX_ARRAY_DEPTH}")
    element_type, count = reader.u32(), reader.u64()
    scalar = _SCALARS.get(element_type)
    if scalar is not None:
        if count <= MAX_KEPT_NUMBERS:
            return reader.numbers(scalar, count)
        reader.skip(count * scalar.size)
    elif element_type == _STRING:
        reader.spend_strings(count)
        if count <= MAX_KEPT_STRINGS:
            return tuple(reader.string().decode(errors="replace") for _ in range(count))
        reader.skip_strings(count)
    elif element_type == _ARRAY:
        reader.spend_arrays(count)
        for _ in range(count):
            _read_array(reader, depth + 1)
    else:
        raise Fault("has metadata of an unknown type")
    return LongArray(count)


class HeaderReader:
    """The bytes of a header in order. Every method raises ``Fault`` where a bound is crossed."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._limit = min(size_bytes, MAX_HEADER_BYTES)
        self._is_limited_by_file = size_bytes <= MAX_HEADER_BYTES
        self._buffer = b""
        self._at = 0
        self._base = 0
        self._kept_bytes = 0
        self._num_strings = 0
        self._num_arrays = 0

    @property
    def offset(self) -> int:
        """Of the next byte in the file."""
        return self._base + self._at

    def take(self, size: int) -> bytes:
        self._need(size)
        end = self._at + size
        if end > len(self._buffer):
            self._fill(size)
            end = size
        taken = self._buffer[self._at : end]
        self._at = end
        return taken

    def skip(self, size: int) -> None:
        self._need(size)
        self._at += size

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def count(self, most: int, what: str) -> int:
        count = self.u64()
        if count > most:
            raise Fault(f"claims more than {most} {what}")
        return count

    def string(self, most: int = MAX_STRING_BYTES) -> bytes:
        length = self.u64()
        if length > most:
            raise Fault(f"has a text of more than {most} bytes where that is too long")
        self._keep(length + _VALUE_BYTES)
        return self.take(length)

    def name(self, most: int) -> str:
        try:
            return self.string(most).decode()
        except UnicodeDecodeError:
            raise Fault("has a name that is not UTF-8 text") from None

    def numbers(self, scalar: Struct, count: int) -> tuple[object, ...]:
        self._keep(count * _VALUE_BYTES)
        return tuple(value for (value,) in scalar.iter_unpack(self.take(count * scalar.size)))

    def spend_strings(self, count: int) -> None:
        self._num_strings += count
        if self._num_strings > MAX_ARRAY_STRINGS:
            raise Fault(f"has more than {MAX_ARRAY_STRINGS} texts in its arrays")

    def spend_arrays(self, count: int) -> None:
        self._num_arrays += count
        if self._num_arrays > MAX_NESTED_ARRAYS:
            raise Fault(f"has more than {MAX_NESTED_ARRAYS} arrays within arrays")

    def skip_strings(self, count: int) -> None:
        """The one loop that a hostile file can make long, and so written for speed."""
        unpack = _U64.unpack_from
        while count:
            self._need(8)
            if self._at + 8 > len(self._buffer):
                self._fill(8)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            while count and at <= last:
                length = unpack(buffer, at)[0]
                if length > MAX_STRING_BYTES:
                    raise Fault(f"has a text of more than {MAX_STRING_BYTES} bytes")
                at += 8 + length
                count -= 1
            self.skip(at - self._at)

    def _keep(self, size: int) -> None:
        self._kept_bytes += size
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise Fault(f"has more than {MAX_KEPT_BYTES} bytes of metadata besides long arrays")

    def _need(self, size: int) -> None:
        if self.offset + size > self._limit:
            if self._is_limited_by_file:
                raise Fault("ends within its header: it is cut off, or damaged")
            raise Fault(f"has a header of more than {MAX_HEADER_BYTES} bytes")

    def _fill(self, size: int) -> None:
        self._base, self._at = self.offset, 0
        self._file.seek(self._base)
        self._buffer = self._file.read(max(size, min(_CHUNK_BYTES, self._limit - self._base)))
        if len(self._buffer) < size:
            raise Fault("ends within its header: it is cut off, or damaged")
