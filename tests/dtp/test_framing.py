"""Framing against protobuf itself: what is put together by hand is what protobuf would have written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.v1 import coordinator_pb2 as pb
from dtp.framing import entry, packed

IDS = st.integers(0, 2**64 - 1)
SIZES = st.sampled_from(
    [0, 1, 50, 110, 116, 117, 118, 125, 126, 127, 128, 129, 16_000, 16_383, 16_384, 3_000_000]
)
FIELD = pb.Call.DESCRIPTOR.fields_by_name["run"].number


@given(st.lists(st.tuples(IDS.filter(bool), SIZES), max_size=5), st.lists(IDS, max_size=40))
def test_a_message_is_what_protobuf_writes(calls: list[tuple[int, int]], cancelled: list[int]) -> None:
    message, by_hand = pb.SessionRequest(cancelled=cancelled), b""
    for identifier, size in calls:
        request = pb.RunRequest(idempotency_key="x" * size)
        message.calls.add(id=identifier, run=request)
        by_hand += entry(FIELD, identifier, request.SerializeToString())
    by_hand += packed(2, cancelled)
    assert by_hand == message.SerializeToString()
    assert pb.SessionRequest.FromString(by_hand) == message


def test_status_is_the_highest_field() -> None:
    field = pb.Answer.DESCRIPTOR.fields_by_name["status"].number
    assert (
        entry(field, 7, b"\x08\x05")
        == pb.SessionResponse(answers=[pb.Answer(id=7, status=b"\x08\x05")]).SerializeToString()
    )
