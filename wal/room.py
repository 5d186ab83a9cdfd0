"""Who may count on which bytes of the log (R11).

Room for a decision is reserved when its transaction begins, so a full disk refuses new work and
still takes every record that running work will need. The promise is kept with what exists: the
rest of the current segment and the spare, if it is ready. What counts against it:

- what is reserved, and what is appended but not yet written, each record as if it had a frame of its own;
- the next checkpoint, estimated as the last one plus all content appended since or still reserved (a
  checkpoint is assumed to be no longer than the records it stands for). Without room for it nothing
  could ever be retired again;
- what may be left unused at the end of the current segment, which is less than the largest record;
- while a rotation is under way: the rest of the current segment, which it gives up.

Three threads meet here. The owner alone changes `reserved`, `appended` and `content`; the
writer and the housekeeper publish what is on disk as one tuple, which the owner reads without a
lock. Every order of their steps errs on the side of too little room.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from wal.format import ENTRY, frame_size
from wal.options import Options
from wal.segment import Blank, Segment, checkpoint_bound_of, segment_size_for


class OnDisk(NamedTuple):
    """What the writer and the housekeeper have published.

    Attributes:
        free, spare: bytes for frames in the current segment and in the spare (0: none is ready).
        written: cost of all records written.
        segments: how many there are since the last checkpoint.
        rotations: how many were carried out or dropped.
        checkpoint, content: bytes of the last checkpoint, and the content it stands for.
    """

    free: int
    spare: int
    written: int
    segments: int
    rotations: int
    checkpoint: int
    content: int


class Pending(NamedTuple):
    """A rotation that the owner asked for; it is over once as many as `number` are.

    Attributes:
        size: bytes of its checkpoint.
        in_place: whether it stays in the current segment.
    """

    number: int
    size: int
    in_place: bool


class Room:
    """The account of the log's bytes."""

    def __init__(self, options: Options, segment: Segment, checkpoint: int) -> None:
        self.alignment = options.alignment
        self.segment_bytes = options.segment_bytes
        self.largest_cost = options.segment_bytes // 4
        self.reserved = 0
        self.appended = 0
        self.content = 0
        self.spare_wanted = segment_size_for(checkpoint, options.segment_bytes, options.alignment)
        self._largest = 0
        self._pending = Pending(0, 0, in_place=False)
        self._declined: tuple[int, int] | None = None
        self._lock = threading.Lock()
        self._spare: Blank | None = None
        self._disk = OnDisk(segment.free, 0, 0, 1, 0, checkpoint, 0)

    # the owner's side

    def cost(self, payload_len: int) -> int:
        """Bytes that a record takes at worst, in a frame of its own."""
        return frame_size(ENTRY.size + payload_len, self.alignment)

    def reserve(self, size: int) -> bool:
        """Sets bytes aside; False, and nothing changed, when they are not surely there."""
        if size < 0:
            raise ValueError(f"cannot reserve {size} bytes")
        disk = self._disk
        largest = max(self._largest, min(size, self.largest_cost))
        sure = disk.free + max(disk.spare - largest, 0)
        if self._pending.number > disk.rotations:
            size_after = self._pending.size
            sure = sure - size_after if self._pending.in_place else min(sure, disk.spare - size_after)
        promised = self.reserved + size
        if promised + self.appended - disk.written + self._estimate(disk, promised) > sure:
            return False
        self.reserved += size
        self._largest = largest
        return True

    def release(self, size: int) -> None:
        """Gives reserved bytes back."""
        if not 0 <= size <= self.reserved:
            raise ValueError(f"cannot release {size} bytes, {self.reserved} are reserved")
        self.reserved -= size

    def add(self, cost: int, content: int) -> None:
        """Counts a record that is being appended."""
        self.appended += cost
        self.content += content
        if cost > self._largest:
            self._largest = cost

    def wants_rotation(self) -> bool:
        """Whether it is time for a checkpoint, and something to write it to."""
        disk = self._disk
        if self._pending.number > disk.rotations:
            return False
        if disk.segments == 1 and disk.free >= self.segment_bytes // 4:
            return False
        if self._declined is not None:
            content, had = self._declined
            if disk.spare <= had and self.content - content < self.segment_bytes // 8:
                return False
        return disk.spare > 0 or disk.segments > 1

    def plan_rotation(self, size: int) -> Pending | None:
        """Decides where a checkpoint of so many bytes goes; None when it would use up reserved room."""
        disk = self._disk
        number = disk.rotations + 1
        if self._pending.number >= number:
            return None
        promised = self.reserved + self.appended - disk.written
        self._declined = None
        # What is queued is written before the rotation, so the new segment owes only what is reserved.
        if disk.spare > 0 and disk.spare - size >= self.reserved:
            self._pending = Pending(number, size, in_place=False)
        elif disk.segments > 1 and disk.free - size >= promised:
            self._pending = Pending(number, size, in_place=True)
        else:
            self._declined = (self.content, disk.spare)
            if disk.spare > 0:
                self.spare_wanted = frame_size(self.segment_bytes + size + self.reserved, self.alignment)
            return None
        return self._pending

    def _estimate(self, disk: OnDisk, promised: int) -> int:
        """Bytes that the next checkpoint takes at most, when what was promised is appended by then."""
        content = disk.checkpoint + self.content - disk.content + promised
        return checkpoint_bound_of(content, self.alignment)

    # the writer's and the housekeeper's side

    @property
    def on_disk(self) -> OnDisk:
        return self._disk

    @property
    def spare(self) -> Blank | None:
        return self._spare

    def wrote(self, free: int, cost: int) -> None:
        """The writer wrote records of this cost; `free` is left."""
        with self._lock:
            self._disk = self._disk._replace(free=free, written=self._disk.written + cost)

    def rotated(self, free: int, size: int, content: int) -> None:
        """A rotation is done: a checkpoint of `size` bytes stands for everything up to `content`."""
        self.spare_wanted = segment_size_for(size, self.segment_bytes, self.alignment)
        with self._lock:
            rotations = self._disk.rotations + 1
            self._disk = OnDisk(free, self._usable(), self._disk.written, 1, rotations, size, content)

    def dropped(self) -> None:
        """The writer has dropped a rotation: there was no place for it after all."""
        with self._lock:
            self._disk = self._disk._replace(rotations=self._disk.rotations + 1)

    def take_spare(self) -> Blank | None:
        """Hands out the spare. It counts as room until `switched` or `rotated` says where it went."""
        with self._lock:
            spare, self._spare = self._spare, None
            return spare

    def put_spare(self, spare: Blank) -> Blank | None:
        """Makes a spare available; returns the one it replaces, if any."""
        with self._lock:
            old, self._spare = self._spare, spare
            self._disk = self._disk._replace(spare=self._usable())
            return old

    def switched(self, free: int, segments: int) -> None:
        """The writer goes on in what was the spare."""
        with self._lock:
            self._disk = self._disk._replace(free=free, spare=self._usable(), segments=segments)

    def _usable(self) -> int:
        return self._spare.size - 2 * self.alignment if self._spare is not None else 0
