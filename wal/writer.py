"""The writer: one write and one flush at a time (R1).

1. The owner puts records into the queue. What gathers while a flush runs is the next frame: that is
   the whole of group commit, there is no timer.
2. `step` takes what is there, up to the size of a batch and to the room in the segment, writes it as
   one frame, flushes, and only then reports the last lsn as durable.
3. A frame that does not fit: the writer rolls over into the spare, which then continues the
   segment before it. Without a spare it waits; that is for room (`wal.room`) to prevent.
4. A rotation is an item of the queue, so that its checkpoint stands exactly for the records before
   it. The checkpoint becomes the head of the spare, or, when the disk had no room for one, goes to
   the current segment, frame by frame, each flushed. Then older segments may go.

Crash windows: between write and flush a restarted process may read a frame that was never
acknowledged, from the page cache; R3 deals with that. Between the parts of a rotation the segment
before it is complete and nothing newer was acknowledged. A failure leaves the position unknown, so
nothing is tried again (R2): whoever drives `step` stops at the first exception.

`step` needs no thread. `run` is the loop of the thread that drives it in a process.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wal.entry import Entry
from wal.files import Files
from wal.format import ENTRY, FRAME_HEADER, U64, FrameType, SegmentFlag, SegmentHeader
from wal.options import Options
from wal.room import Room
from wal.segment import Blank, Segment, checkpoint_frames, publish

_ALONE = FRAME_HEADER.size + ENTRY.size

FlushObserver = Callable[[float, int, int], None]
Record = tuple[bytes, bytes, int]


@dataclass(frozen=True, slots=True)
class Rotation:
    """A checkpoint that waits in the queue: its bound in bytes, and the content appended before it."""

    checkpoint: Sequence[Entry]
    size: int
    content: int
    in_place: bool


class Writer:
    """Moves records from the queue to the disk.

    Attributes:
        queue: records (packed head, payload, cost) and rotations, in lsn order.
        durable_lsn: everything up to it is on disk.
        blocked: a record waits for a spare segment.
        retire_below: segments with a lower number are no longer needed.
        flush_started: when the flush under way began, on the port's monotonic clock; None if there is none.
        last_flush_seconds: how long the last one took.
        on_room_changed: called when the spare was used or segments can be retired.
    """

    def __init__(
        self,
        files: Files,
        options: Options,
        room: Room,
        segment: Segment,
        on_durable: Callable[[int], None],
        flush_observer: FlushObserver | None,
    ) -> None:
        self._files = files
        self._options = options
        self._room = room
        self._on_durable = on_durable
        self._observer = flush_observer
        self.segment = segment
        self.queue: deque[Record | Rotation] = deque()
        self.durable_lsn = segment.header.first_lsn - 1
        self.retire_below = segment.header.seq
        self.blocked = False
        self.flush_started: float | None = None
        self.last_flush_seconds = 0.0
        self._segments = 1
        self.on_room_changed: Callable[[], None] = lambda: None
        self._wake = threading.Lock()  # the thread sleeps in it: free means that it was kicked
        self._wake.acquire()
        self._kicked = False
        self._stopping = False
        self._halted = False

    # one step at a time

    def step(self) -> bool:
        """Writes and flushes one frame, or carries out one rotation.

        Returns:
            Whether something is left that was in the queue before and can be written now.

        Raises:
            OSError, or what a callback raised: the log has failed, do not call again.
        """
        available = len(self.queue)
        if available == 0 or self._halted:
            return False
        first = self.queue[0]
        if isinstance(first, Rotation):
            self._rotate(first)
            self.queue.popleft()
            return available > 1
        heads, payloads, cost = self._gather()
        if not heads and self._roll_over():
            heads, payloads, cost = self._gather()
        self.blocked = not heads
        if self.blocked:
            return False
        size = self.segment.write(
            FrameType.DATA, self.durable_lsn + 1, len(heads), b"".join(heads + payloads)
        )
        self._flush()
        self.durable_lsn += len(heads)
        self._on_durable(self.durable_lsn)  # before all that nobody waits for
        self._room.wrote(self.segment.free, cost)
        self._observe(len(heads), size)
        return available > len(heads)

    def write_close(self) -> None:
        """Marks a clean shutdown; the queue must be empty."""
        body = U64.pack(self._files.wall_ns())
        size = self.segment.write(FrameType.CLOSE, self.durable_lsn + 1, 0, body)
        self._flush()
        self._observe(0, size)

    def _gather(self) -> tuple[list[bytes], list[bytes], int]:
        """Takes records off the queue, as many as fit in a batch and in the segment."""
        heads: list[bytes] = []
        payloads: list[bytes] = []
        cost = size = 0
        queue, limit = self.queue, self._options.max_batch_bytes
        fit = self.segment.free // self._options.alignment * self._options.alignment - FRAME_HEADER.size
        while queue and size < limit:
            item = queue[0]
            if isinstance(item, Rotation):
                break
            size += ENTRY.size + len(item[1])
            if size > fit:
                break
            heads.append(item[0])
            payloads.append(item[1])
            cost += item[2]
            queue.popleft()
        return heads, payloads, cost

    def _flush(self) -> None:
        started = self.flush_started = self._files.monotonic()
        self._files.fdatasync(self.segment.fd)
        self.last_flush_seconds = self._files.monotonic() - started
        self.flush_started = None

    def _observe(self, records: int, size: int) -> None:
        if self._observer is not None:
            self._observer(self.last_flush_seconds, records, size)

    def _roll_over(self) -> bool:
        """Continues in the spare, without a checkpoint; False when there is none."""
        spare = self._room.take_spare()
        if spare is None:
            return False
        self._continue_in(spare, (), SegmentFlag.SEALED | SegmentFlag.CONTINUES)
        self._segments += 1
        self._room.switched(self.segment.free, self._segments)
        self.on_room_changed()
        return True

    def _rotate(self, rotation: Rotation) -> None:
        """Carries out a rotation, or drops it when its place is gone; the owner will be asked again."""
        spare = self._room.spare
        if rotation.in_place and self.segment.free >= rotation.size:
            self._checkpoint_in_place(rotation.checkpoint)
        elif (
            not rotation.in_place
            and spare is not None
            and spare.size >= rotation.size + 2 * self._options.alignment
        ):
            self._continue_in(self._room.take_spare() or spare, rotation.checkpoint, SegmentFlag.SEALED)
        else:
            self._room.dropped()
            return
        self._segments = 1
        self.retire_below = self.segment.header.seq
        self._room.rotated(self.segment.free, rotation.size, rotation.content)
        self.on_room_changed()

    def _checkpoint_in_place(self, checkpoint: Sequence[Entry]) -> None:
        """One frame in flight here, too: otherwise a cut could leave a later frame without an earlier one."""
        for kind, count, body in checkpoint_frames(checkpoint):
            size = self.segment.write(kind, self.durable_lsn + 1, count, body)
            self._flush()
            self._room.wrote(self.segment.free, 0)
            self._observe(0, size)

    def _continue_in(self, spare: Blank, checkpoint: Sequence[Entry], flags: SegmentFlag) -> None:
        old = self.segment
        header = SegmentHeader(
            identity=old.header.identity,
            seq=old.header.seq + 1,
            first_lsn=self.durable_lsn + 1,
            epoch=old.header.epoch,
            created_ns=self._files.wall_ns(),
            size=spare.size,
            alignment=old.header.alignment,
            prev_end=old.offset,
            prev_chain=old.chain,
            flags=flags,
        )
        self.flush_started = self._files.monotonic()
        self.segment = publish(self._files, spare, header, checkpoint)
        self.flush_started = None
        self._files.close(old.fd)

    # the thread

    def kick(self) -> None:
        """Wakes the thread; called after putting something in the queue."""
        if not self._kicked:
            self._kicked = True
            with contextlib.suppress(RuntimeError):  # two threads have kicked at the same moment
                self._wake.release()

    def stop(self) -> None:
        """Lets the thread empty the queue and end."""
        self._stopping = True
        self.kick()

    def halt(self) -> None:
        """Ends it without writing anything more: the log has failed elsewhere."""
        self._halted = True
        self.stop()

    def run(self) -> None:
        """The thread's loop: until `stop`, or an exception out of `step`.

        Records that nobody kicked for wait for the next batch, or for the tick.
        """
        while True:
            if self._wake.acquire(timeout=self._options.tick_seconds):
                self._kicked = False  # before the queue is looked at: who puts something in later kicks again
            stopping = self._stopping
            more = self.step()
            while more or (stopping and self.queue and not self.blocked and not self._halted):
                more = self.step()
            if stopping:
                return


def record_cost(payload_len: int, alignment: int) -> int:
    """Bytes of a record in a frame of its own: `frame_size`, for every record that is appended."""
    return -(-(_ALONE + payload_len) // alignment) * alignment
