"""Floor: what the disk takes to write one block and flush it. No log can be faster for one record."""

from __future__ import annotations

import time
from pathlib import Path

from wal import Files, Options
from wal.format import PAD
from wal.segment import create_blank

_FILE_BYTES = 16 << 20


class Floor:
    """A file made as the log makes its own, allocated and filled with zeros, to which blocks are written."""

    def __init__(self, files: Files, path: Path, options: Options) -> None:
        self._files = files
        self._blank = create_blank(files, path, _FILE_BYTES)
        self._block = PAD * options.alignment
        self._offset = 0

    def run(self, seconds: float) -> list[float]:
        """Write and flush for so long; the seconds that each block took."""
        files, fd, block = self._files, self._blank.fd, self._block
        took = []
        end = time.perf_counter() + seconds
        before = 0.0
        while before < end:
            before = time.perf_counter()
            files.pwrite(fd, block, self._offset)
            files.fdatasync(fd)
            took.append(time.perf_counter() - before)
            self._offset = (self._offset + len(block)) % _FILE_BYTES
        return took

    def close(self) -> None:
        """Give the file's handle back."""
        self._files.close(self._blank.fd)
