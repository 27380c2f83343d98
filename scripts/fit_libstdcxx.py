"""Make a shared library of GCC 13 load where libstdc++ is that of GCC 12 (Debian 12 has 3.4.30).

    python fit_libstdcxx.py LIBRARY.so

GCC 13 has every translation unit that includes <iostream> call
`std::ios_base_library_init()`, GLIBCXX_3.4.32, which does nothing but make sure that the
library's own initialiser is linked in. Where libstdc++ lacks it, older objects in the same
process (libtorch) initialise the streams as before, so the call may go anywhere that does no
harm: the import is pointed at getpid, which the library imports anyway, and the requirement
of the version is marked as weak. A library that is fit already, or loads as it is, is left
alone. Needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MISSING = b"_ZSt21ios_base_library_initv"
HARMLESS = b"getpid"
VERSION = b"GLIBCXX_3.4.32"

_SHT_DYNSYM, _SHT_VERNEED, _SHT_VERSYM = 11, 0x6FFFFFFE, 0x6FFFFFFF
_WEAK = 2  # VER_FLG_WEAK
_SYMBOL_BYTES = 24


@dataclass(frozen=True)
class Section:
    kind: int
    offset: int
    size: int
    link: int


class NotFit(Exception):
    """The library is not of the kind that this program can change."""


class Library:
    """A 64-bit little-endian ELF file in memory."""

    def __init__(self, data: bytearray) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise NotFit("not a 64-bit little-endian ELF file")
        self.data = data
        (start,) = struct.unpack_from("<Q", data, 0x28)
        size, count = struct.unpack_from("<HH", data, 0x3A)
        self._sections = [
            Section(*struct.unpack_from("<4xI16xQQI", data, start + index * size))
            for index in range(count)
        ]

    def _of_kind(self, kind: int) -> Section:
        found = [section for section in self._sections if section.kind == kind]
        if not found:
            raise NotFit(f"no section of type {kind:#x}")
        return found[0]

    def _text(self, section: Section, offset: int) -> bytes:
        start = self._sections[section.link].offset + offset
        return bytes(self.data[start : self.data.index(0, start)])

    def symbols(self) -> dict[bytes, int]:
        """Index of each dynamic symbol by its name."""
        table = self._of_kind(_SHT_DYNSYM)
        names: dict[bytes, int] = {}
        for index in range(table.size // _SYMBOL_BYTES):
            (name,) = struct.unpack_from("<I", self.data, table.offset + index * _SYMBOL_BYTES)
            names[self._text(table, name)] = index
        return names

    def alias(self, one: int, other: int) -> None:
        """Make dynamic symbol `one` mean what `other` means: its name and its version."""
        symbols, versions = self._of_kind(_SHT_DYNSYM).offset, self._of_kind(_SHT_VERSYM).offset
        for start, width, unit in ((symbols, _SYMBOL_BYTES, 4), (versions, 2, 2)):
            source, target = start + other * width, start + one * width
            self.data[target : target + unit] = self.data[source : source + unit]

    def requirements(self) -> Iterator[tuple[bytes, int]]:
        """Each version that is required of another library, and where its flags are."""
        table = self._of_kind(_SHT_VERNEED)
        need = table.offset
        while True:
            _, count, _, first, following = struct.unpack_from("<HHIII", self.data, need)
            entry = need + first
            for _ in range(count):
                _, _, _, name, skip = struct.unpack_from("<IHHII", self.data, entry)
                yield self._text(table, name), entry + 4
                entry += skip
            if following == 0:
                return
            need += following


def fit(data: bytearray) -> bool:
    """Change the library in `data`; False if there was nothing to change. Raises NotFit."""
    library = Library(data)
    symbols = library.symbols()
    if MISSING not in symbols:
        return False
    if HARMLESS not in symbols:
        raise NotFit(f"it does not import {HARMLESS.decode()}")
    library.alias(symbols[MISSING], symbols[HARMLESS])
    for version, flags in library.requirements():
        if version == VERSION:
            struct.pack_into("<H", data, flags, _WEAK)
    return True


def has_version() -> bool:
    """Whether this machine's libstdc++ has what the library asks for."""
    try:
        return hasattr(ctypes.CDLL("libstdc++.so.6"), MISSING.decode())
    except OSError:
        return False


def main() -> int:
    path = Path(sys.argv[1])
    if has_version():
        return 0
    data = bytearray(path.read_bytes())
    try:
        changed = fit(data)
    except NotFit as error:
        print(f"{path}: cannot be fitted to this libstdc++: {error}", file=sys.stderr)
        return 1
    if changed:
        path.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
