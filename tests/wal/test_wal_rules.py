"""What open refuses, what it accepts, and what repair does about it; on simulated files."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from tests.wal.owner import DIRECTORY, SMALL, Owner, segment_names, small_log
from tests.wal.simulated_files import Inode, SimulatedFiles
from wal import (
    LogCorrupt,
    LogError,
    LogLocked,
    LogMissing,
    LogTooNew,
    Options,
    RepairRefused,
    TailState,
    read,
)
from wal import repair as repair_log
from wal.format import (
    U32,
    WATERMARK_NAME,
    SegmentHeader,
    Watermark,
    crc,
    decode_segment_header,
    decode_watermark,
    encode_watermark,
)
from wal.survey import survey


def refusal(files: SimulatedFiles) -> LogError:
    files.process_crash()
    with pytest.raises(LogError) as caught:
        Owner(files).open()
    assert files.locked is None, "a refused log must not stay locked"
    return caught.value


def rewrite_header(inode: Inode, **changes: object) -> None:
    header = dataclasses.replace(decode_segment_header(bytes(inode.cache[:512])), **changes)  # type: ignore[arg-type]
    inode.cache[:512] = header.encode()


def continued_log() -> tuple[SimulatedFiles, Owner]:
    """Three segments of which the second and third continue the first."""
    files = SimulatedFiles()
    owner = Owner(files)
    owner.begin()
    sequence = 0
    while len(segment_names(files)) < 3:
        owner.log.tend()
        sequence += 1
        owner.append(sequence, b"p" * 2000)
        owner.drain()
    owner.append(sequence + 1, b"last")
    owner.drain()
    files.process_crash()
    return files, owner


def test_a_log_of_several_segments_is_read_in_order() -> None:
    files, owner = continued_log()
    recovered = owner.begin()
    assert [entry.lsn for entry in recovered.entries] == list(range(1, recovered.next_lsn))
    assert len(recovered.segments) == 3
    owner.log.tend()
    assert len(segment_names(files)) == 1, "the start has replaced them"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_missing_segment(missing: int) -> None:
    files, owner = continued_log()
    with_mark = missing == 2
    if with_mark:
        owner.open()
        owner.start(owner.log._found.recovered())
        files.process_crash()
    names = segment_names(files)
    del files.cached_names[names[-1] if with_mark else names[missing]]
    error = refusal(files)
    assert isinstance(error, LogCorrupt)
    reasons = ("continues one that is missing", "segments are missing between", "newest segment")
    assert reasons[missing] in error.reason or with_mark


def test_all_segments_missing() -> None:
    files, owner = small_log([[b"x"]])
    owner.log.tend()
    for name in segment_names(files):
        del files.cached_names[name]
    error = refusal(files)
    assert isinstance(error, LogCorrupt)
    assert "no segments" in error.reason


def test_sealed_segment_that_ends_too_early() -> None:
    files, _ = continued_log()
    inode = files.cached_names[segment_names(files)[0]]
    end = survey(files, DIRECTORY).segments[0].end
    inode.cache[end - 512 * 4 :] = bytes(len(inode.cache) - end + 512 * 4)
    error = refusal(files)
    assert isinstance(error, LogCorrupt)
    assert segment_names(files)[0] in error.file


def test_segment_of_another_log() -> None:
    files, _ = continued_log()
    rewrite_header(files.cached_names[segment_names(files)[1]], identity=b"f" * 16)
    assert "another log" in str(refusal(files))


def test_epoch_that_decreases() -> None:
    files, owner = small_log([[b"x"]])
    files.process_crash()
    owner.begin()
    names = segment_names(files)
    assert len(names) == 2
    rewrite_header(files.cached_names[names[0]], epoch=7)
    assert "older than" in str(refusal(files))


def test_name_and_size_have_to_fit() -> None:
    files, _ = small_log([[b"x"]])
    name = segment_names(files)[0]
    files.cached_names[name.replace("1.log", "2.log")] = files.cached_names.pop(name)
    assert "name does not fit" in str(refusal(files))
    files, _ = small_log([[b"x"]])
    files.cached_names[segment_names(files)[0]].cache.extend(b"\0")
    assert "bytes, its header says" in str(refusal(files))


def test_newer_format() -> None:
    files, _ = small_log([[b"x"]])
    inode = files.cached_names[segment_names(files)[0]]
    inode.cache[8:10] = (2).to_bytes(2, "little")
    assert isinstance(refusal(files), LogCorrupt), "a version without its checksum is damage"
    inode.cache[92:96] = U32.pack(crc(0, bytes(inode.cache[:92])))
    error = refusal(files)
    assert isinstance(error, LogTooNew)
    assert "newer" in str(error)


def test_watermark_notices_a_segment_restored_from_a_copy() -> None:
    files, owner = small_log([[b"x"]])
    name = segment_names(files)[0]
    old = bytes(files.cached_names[name].cache)
    owner.append(2, b"y")
    owner.drain()
    owner.log.tend()
    files.cached_names[name].cache[:] = old
    error = refusal(files)
    assert isinstance(error, LogCorrupt)
    assert "lsn 2 had been acknowledged" in error.reason
    assert error.lsn == 2
    assert "coordctl wal verify" in str(error)


def test_watermark_is_a_lower_bound_only() -> None:
    files, owner = small_log([[b"x"]])
    owner.log.tend()
    owner.append(2, b"y")
    owner.drain()
    files.process_crash()
    owner.begin()
    assert owner.acknowledged == 2


def test_watermark_torn_or_absent_or_foreign() -> None:
    files, owner = small_log([[b"x"]])
    owner.log.tend()
    mark = files.cached_names[WATERMARK_NAME]
    good = bytes(mark.cache)
    for slot in (0, 512):
        mark.cache[:] = good
        mark.cache[slot : slot + 512] = b"?" * 512
        files.process_crash()
        assert survey(files, DIRECTORY).problem is None, "one torn slot is what a power cut leaves"
    mark.cache[:] = b"?" * 1024
    assert "both slots" in str(refusal(files))
    mark.cache[:] = encode_watermark(Watermark(b"g" * 16, 1, 1, 1, 1)) + bytes(512)
    assert "another log" in str(refusal(files))
    del files.cached_names[WATERMARK_NAME]
    assert survey(files, DIRECTORY).problem is None


def test_watermark_slots_are_written_in_turn() -> None:
    files, owner = small_log([[b"x"]])
    owner.log.tend()
    cache = files.cached_names[WATERMARK_NAME].cache
    marks = [decode_watermark(bytes(cache[slot : slot + 512])) for slot in (0, 512)]
    assert {mark.lsn for mark in marks if mark} == {0, 1}


def test_a_round_of_the_housekeeper_begins_with_the_watermark() -> None:
    """So the window in which zeros can hide a record ends with the round that began after it was durable."""
    files, owner = small_log([[b"x"]])
    owner.log.tend()
    owner.rotate()
    owner.append(2, b"y")
    owner.drain()
    before = len(files.log)
    owner.log.tend()
    assert files.log[before : before + 3] == ["pwrite", "fdatasync", "unlink wal-0000000000000001.log"]
    assert "create spare-2.tmp" in files.log[before:]
    slots = [
        decode_watermark(bytes(files.cached_names[WATERMARK_NAME].cache[at : at + 512])) for at in (0, 512)
    ]
    assert max(mark.lsn for mark in slots if mark) == owner.acknowledged == 2


def test_older_directory_restored_is_a_sound_log_of_a_lower_epoch() -> None:
    """The log cannot tell by itself (R9): agents do, who remember a higher epoch of the same identity."""
    files, owner = small_log([[b"x"]])
    files.process_crash()
    backup = copy.deepcopy(files)
    now = owner.begin()
    owner.log.close()
    restored = Owner(backup)
    restored.states = owner.states
    then = restored.open()
    assert then.identity == now.identity
    assert then.epoch == 1 < owner.log.status().epoch


def test_lock() -> None:
    files, owner = small_log([[b"x"]])
    with pytest.raises(LogLocked):
        Owner(files).open()
    owner.log.close()
    assert owner.open().tail.state is TailState.CLOSED


def test_epoch_has_to_grow() -> None:
    files, owner = small_log([[b"x"]])
    files.process_crash()
    owner.open()
    for epoch in (0, 1, 1 << 32):
        with pytest.raises(ValueError, match="must be above 1"):
            owner.log.start(epoch, [])
    owner.log.start(2, [])


def test_torn_tail_is_kept_for_people() -> None:
    files, owner = small_log([[b"x"], [b"y" * 900]])
    files.process_crash()
    files.cached_names.pop(WATERMARK_NAME)
    name = segment_names(files)[0]
    inode = files.cached_names[name]
    end = survey(files, DIRECTORY).tail.offset
    inode.cache[end - 1024 : end - 512] = bytes(512)
    owner.acknowledged = 1
    recovered = owner.open()
    assert recovered.tail.state is TailState.TORN
    assert (recovered.tail.file, recovered.tail.offset) == (name, end - 1024)
    owner.start(recovered)
    owner.log.tend()
    kept = [name for name in files.cached_names if name.endswith(".torn")]
    assert len(kept) == 1
    assert bytes(files.cached_names[kept[0]].cache)[512:] == bytes(inode.cache[end - 512 : end])


def test_close_frame_and_nothing_behind_it() -> None:
    files, owner = small_log([[b"x"]])
    owner.append(2, b"lazy", kick=False)
    owner.log.close()
    owner.log.close()
    assert owner.acknowledged == 2, "close flushes what is queued"
    found = survey(files, DIRECTORY)
    assert found.tail.state is TailState.CLOSED
    with pytest.raises(LogError, match="closed"):
        owner.append(3, b"z")


def test_rotation_replaces_and_retires() -> None:
    files = SimulatedFiles()
    owner = Owner(files, options=Options(segment_bytes=16384, keep_retired=2))
    owner.begin()
    for sequence in range(60):
        owner.log.tend()
        owner.append(sequence % 3, b"p" * 1500)
        if owner.log.should_rotate():
            assert owner.rotate()
            assert not owner.log.should_rotate(), "one rotation at a time"
        owner.drain()
    owner.log.tend()
    assert len(segment_names(files)) == 1
    assert sum(name.endswith(".retired") for name in files.cached_names) == 2
    assert survey(files, DIRECTORY).segments[0].header.seq > 5  # type: ignore[union-attr]
    files.process_crash()
    recovered = owner.open()
    assert recovered.next_lsn == 61
    assert len(recovered.entries) < 20


def test_checkpoint_larger_than_a_segment() -> None:
    files = SimulatedFiles()
    owner = Owner(files)
    owner.begin()
    for sequence in range(30):
        owner.append(sequence, b"q" * 2500)
        owner.drain()
        owner.log.tend()
        if owner.log.should_rotate():
            owner.rotate()
    owner.drain()
    files.process_crash()
    owner.begin()
    files.process_crash()
    recovered = owner.open()
    assert len(recovered.entries) == 30
    assert recovered.segments[-1].size > 30 * 2500


def test_entries_of_a_checkpoint_carry_the_lsn_they_stand_for() -> None:
    files, owner = small_log([[b"x", b"y"]])
    files.process_crash()
    owner.begin()
    owner.append(9, b"z")
    owner.drain()
    files.process_crash()
    assert [entry.lsn for entry in owner.open().entries] == [2, 2, 3]


def test_records_out_of_range_change_nothing() -> None:
    _, owner = small_log([])
    for bad in (
        {"kind": 1 << 16},
        {"epoch": 1 << 32},
        {"sequence": -1},
        {"flags": 1 << 16},
        {"payload": b"x" * 9999},
    ):
        fields = {"kind": 1, "epoch": 1, "sequence": 1, "payload": b"", "flags": 0} | bad
        with pytest.raises(ValueError, match="record"):
            owner.log.append(**fields, kick=True)  # type: ignore[arg-type]
    assert owner.log.next_lsn == 1
    assert owner.log.status().queued == 0


def damaged_log() -> tuple[SimulatedFiles, Owner]:
    files, owner = small_log([[b"a"], [b"b"], [b"c"]])
    owner.log.tend()
    files.process_crash()
    inode = files.cached_names[segment_names(files)[0]]
    inode.cache[survey(files, DIRECTORY).tail.offset - 1024 + 60] ^= 1
    return files, owner


def test_repair_needs_consent_and_a_readable_lsn() -> None:
    files, _ = damaged_log()
    before = copy.deepcopy({name: inode.cache for name, inode in files.cached_names.items()})
    for lsn, consent in ((2, False), (3, True), (99, True)):
        with pytest.raises(RepairRefused):
            repair_log(DIRECTORY, lsn, consent, SMALL, files)
    assert {name: inode.cache for name, inode in files.cached_names.items()} == before
    assert files.locked is None
    with pytest.raises(LogMissing):
        repair_log(DIRECTORY, 0, True, SMALL, SimulatedFiles())


@pytest.mark.parametrize("lsn", [0, 1, 2])
def test_repair_keeps_what_is_below_and_gives_a_new_identity(lsn: int) -> None:
    files, owner = damaged_log()
    identity = owner.log._identity
    report = repair_log(DIRECTORY, lsn, True, SMALL, files)
    assert (report.problem, report.repaired, report.next_lsn) == (None, True, max(lsn, 1))
    assert sum(name.endswith(".damaged") for name in files.cached_names) == 2
    owner.acknowledged = 0
    recovered = owner.begin()
    assert recovered.repaired
    assert recovered.identity != identity
    assert recovered.epoch == 1
    owner.append(5, b"new")
    owner.drain()
    owner.log.tend()
    owner.log.close()
    assert not owner.open().repaired


def test_repair_cut_off_anywhere_can_be_done_again() -> None:
    for operation in range(1, 40):
        for keep in (0, 99):
            files, owner = damaged_log()
            for inode in files.cached_names.values():
                inode.disk[:] = inode.cache
            files.crash_at = files.operations + operation
            try:
                repair_log(DIRECTORY, 2, True, SMALL, files)
            except BaseException as error:
                assert type(error).__name__ == "PowerCut"  # noqa: PT017
            files.power_cut(lambda sector: False, lambda names, keep=keep: min(names, keep))  # type: ignore[misc]
            found = survey(files, DIRECTORY)
            assert found.problem is None or not found.repaired, "done once the new segment is there"
            if found.problem is not None:
                repair_log(DIRECTORY, 2, True, SMALL, files)
            owner.acknowledged = 1
            recovered = owner.begin()
            assert recovered.repaired
            assert recovered.next_lsn == 2
            owner.log.close()
            assert [name for name in files.cached_names if name.endswith(".damaged")]


def test_read_does_not_need_the_lock() -> None:
    files, owner = small_log([[b"x"]])
    recovered = read(DIRECTORY, files)
    assert [entry.payload for entry in recovered.entries] == [b"x"]
    assert owner.log.append(1, 1, 1, b"y", kick=True) == 2


def test_header_says_how_big_a_segment_is() -> None:
    header = SegmentHeader(b"i" * 16, 3, 4, 5, 6, 16384, 512)
    assert decode_segment_header(header.encode()) == header
    assert header.name == "wal-0000000000000003.log"
