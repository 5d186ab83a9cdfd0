"""Commands that read: status, list, show, watch, participants, log, xid; as table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from coordinator.v1 import admin_pb2, coordinator_pb2
from dtp import XacoordError
from tests.ctl.conftest import Coordctl
from tests.ctl.messages import GTRID, OTHER, log_status, participant, transaction


def test_status_is_quiet_when_all_is_well(coordctl: Coordctl) -> None:
    result = coordctl("status", "--check")
    assert (result.code, result.err) == (0, "")
    assert "nothing needs attention" in result.out
    assert "a0b1 at 127.0.0.1:" in result.out
    assert "4 active, 0 blocked" in result.out


@pytest.mark.parametrize(
    ("log", "participants", "problem"),
    [
        ({"ready": False, "not_ready_reason": "replaying"}, [], "the coordinator is not ready: replaying"),
        ({"room": False}, [], "the log has no room: new transactions are refused"),
        ({"blocked_transactions": 2}, [], "blocked transactions: 2 (coordctl list --in-doubt)"),
        ({}, [participant("stock", 2, state="HOLD")], "participant stock is HOLD"),
        (
            {},
            [participant("stock", 2, state="UNREACHABLE", last_error="2003")],
            "participant stock is UNREACHABLE: 2003",
        ),
        (
            {},
            [participant("stock", 2, orphans=3)],
            "orphan branches at stock: 3 (coordctl recover --dry-run)",
        ),
    ],
)
def test_status_names_what_needs_attention(
    coordctl: Coordctl, log: dict[str, object], participants: list[admin_pb2.Participant], problem: str
) -> None:
    coordctl.fake.answers["LogStatus"] = log_status(**log)
    coordctl.fake.answers["Participants"] = admin_pb2.ParticipantsResponse(participants=participants)
    result = coordctl("status")
    assert result.code == 0
    assert f"! {problem}\n" in result.out
    checked = coordctl("status", "--check", "-o", "json")
    assert checked.code == 4
    advice = "on HOLD: stock; nothing is presumed while that lasts."
    found = json.loads(checked.out)["problems"]
    assert [text for text in found if not text.startswith(advice)] == [problem]
    assert (len(found) == 2) == ("HOLD" in problem)


def test_status_says_that_the_health_service_disagrees(coordctl: Coordctl) -> None:
    from grpc_health.v1 import health_pb2

    coordctl.fake.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    result = coordctl("status", "--check")
    assert result.code == 4
    assert "! the coordinator is not ready: its health is NOT_SERVING" in result.out


def heuristic(gtrid: str, **changes: object) -> coordinator_pb2.Transaction:
    return transaction(
        gtrid,
        state=coordinator_pb2.STATE_HEURISTIC,
        outcome=coordinator_pb2.OUTCOME_HEURISTIC_MIXED,
        in_doubt=False,
        blocked=False,
        **changes,
    )


def test_an_open_heuristic_outcome_needs_attention_until_it_is_forgotten(coordctl: Coordctl) -> None:
    rows = [heuristic(OTHER, forgotten=True), heuristic(GTRID)]
    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(transactions=rows)
    result = coordctl("status", "--check")
    assert result.code == 4
    (line,) = [line for line in result.out.splitlines() if line.startswith("!")]
    assert line == f"! heuristic outcome HEURISTIC_MIXED: {GTRID} (coordctl show {GTRID})"
    assert "4 active, 0 blocked, 1 heuristic\n" in result.out
    request = coordctl.fake.of("List")[0]
    assert list(request.states) == [coordinator_pb2.STATE_HEURISTIC]
    document = json.loads(coordctl("status", "-o", "json").out)
    assert document["heuristic_transactions"] == 1
    assert document["heuristic"] == [{"gtrid": GTRID, "outcome": "HEURISTIC_MIXED"}]

    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(transactions=rows[:1])
    result = coordctl("status", "--check")
    assert (result.code, "nothing needs attention" in result.out) == (0, True)


def test_many_heuristic_outcomes_do_not_hide_the_rest(coordctl: Coordctl) -> None:
    rows = [heuristic(f"k1a0b10003{number:010}") for number in range(12)]
    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(transactions=rows)
    coordctl.fake.answers["LogStatus"] = log_status(blocked_transactions=1)
    problems = json.loads(coordctl("status", "-o", "json").out)["problems"]
    assert len(problems) == 12
    assert problems[10] == "2 more heuristic outcomes (coordctl list --state HEURISTIC)"
    assert problems[11].startswith("blocked transactions: 1 ")


def test_list_and_show_say_what_is_forgotten(coordctl: Coordctl) -> None:
    rows = [heuristic(OTHER, forgotten=True), heuristic(GTRID)]
    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(transactions=rows)
    _, forgotten, still_open = coordctl("list").out.splitlines()
    assert forgotten.split()[4] == "forgotten"
    assert still_open.split()[4] == "HEURISTIC"
    listed = json.loads(coordctl("list", "-o", "json").out)["transactions"]
    assert [row["forgotten"] for row in listed] == [True, False]
    for row, text in zip(rows, ("forgotten: ", "HEURISTIC: make the databases agree"), strict=True):
        coordctl.fake.answers["Get"] = coordinator_pb2.GetResponse(transaction=row, evidence="live")
        assert f"attention  {text}" in coordctl("show", row.gtrid).out


def test_list_tells_why_it_was_rolled_back_apart_from_errors(coordctl: Coordctl) -> None:
    rejection = coordinator_pb2.Rejection(reason="PRESUMED_ABORT", message="no COMMIT record")
    rows = [transaction(rejection=rejection, branches=[])]
    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(transactions=rows)
    header, row = coordctl("list").out.splitlines()
    assert header.endswith("ROLLED BACK FOR")
    assert "LAST ERROR" not in header
    assert row.endswith("PRESUMED_ABORT")


def test_list_and_show_say_what_a_branch_waits_for(coordctl: Coordctl) -> None:
    pb = coordinator_pb2
    waits = [
        pb.Blocker(gtrid=OTHER),
        pb.Blocker(gtrid=OTHER, prepared=True),
        pb.Blocker(prepared=True),
        pb.Blocker(connection_id=17, account="app@host"),
        pb.Blocker(gtrid=OTHER, connection_id=18),
    ]
    row = transaction(
        branches=[pb.Branch(participant="orders", number=1, waits_for=waits), pb.Branch(participant="stock")]
    )
    coordctl.fake.answers["List"] = pb.ListResponse(transactions=[row])
    coordctl.fake.answers["Get"] = pb.GetResponse(transaction=row)
    assert f"orders: {OTHER}" in coordctl("list").out
    told = (
        f"{OTHER}, prepared branch {OTHER}, a prepared branch of somebody else, connection 17 of app@host, "
    )
    assert f"{told}{OTHER} (through connection 18)" in coordctl("show", GTRID).out
    branch, free = json.loads(coordctl("show", GTRID, "-o", "json").out)["transaction"]["branches"]
    assert branch["waits_for"][3] == {
        "gtrid": None,
        "prepared": False,
        "connection_id": 17,
        "account": "app@host",
    }
    assert free["waits_for"] == []


def test_list_help_says_the_newest_first(coordctl: Coordctl) -> None:
    assert "newest first" in coordctl("list", "--help").out


def test_status_sums_up_the_participants(coordctl: Coordctl) -> None:
    coordctl.fake.answers["Participants"] = admin_pb2.ParticipantsResponse(
        participants=[
            participant("orders", 1, in_doubt=2, blocked_sessions=5),
            participant("stock", 2, in_doubt=1, foreign=9, scanned_seconds_ago=-1),
        ]
    )
    document = json.loads(coordctl("status", "-o", "json").out)
    assert document["in_doubt_branches"] == 3
    assert document["blocked_sessions"] == 5
    assert document["participants"][1]["scanned_seconds_ago"] is None
    assert document["log"]["bytes"] == 134217728


def test_list_asks_for_what_the_options_say(coordctl: Coordctl) -> None:
    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(transactions=[transaction()])
    result = coordctl(
        "list", "--in-doubt", "--older-than", "1m30s", "--state", "committing", "--state", "HEURISTIC"
    )
    assert result.code == 0
    (request,) = coordctl.fake.of("List")
    assert request.in_doubt
    assert (request.older_than.seconds, request.older_than.nanos) == (90, 0)
    assert list(request.states) == [coordinator_pb2.STATE_COMMITTING, coordinator_pb2.STATE_HEURISTIC]
    header, row = result.out.splitlines()
    assert header.split() == ["GTRID", "STATE", "OUTCOME", "AGE", "ATTENTION", "BRANCHES", "LAST", "ERROR"]
    assert row == (
        f"{GTRID}  COMMITTING  COMMITTED  4m05s  BLOCKED    "
        "orders NON_EXISTENT, stock PREPARED  stock: SERVER_UNAVAILABLE: 2003"
    )


def test_list_follows_pages_up_to_the_limit(coordctl: Coordctl) -> None:
    def pages(request: coordinator_pb2.ListRequest) -> coordinator_pb2.ListResponse:
        start = int(request.page_token or 0)
        names = [f"k1a0b10003{number:010}" for number in range(start, start + min(request.page_size, 3))]
        return coordinator_pb2.ListResponse(
            transactions=[transaction(name) for name in names], next_page_token=str(start + len(names))
        )

    coordctl.fake.answers["List"] = pages
    result = coordctl("list", "--limit", "7", "-o", "json")
    document = json.loads(result.out)
    assert [row["gtrid"][-2:] for row in document["transactions"]] == [
        "00",
        "01",
        "02",
        "03",
        "04",
        "05",
        "06",
    ]
    assert document["truncated"] is True
    assert result.err == "coordctl: there are more than these 7; give --limit\n"


def test_list_is_not_truncated_at_exactly_the_limit(coordctl: Coordctl) -> None:
    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(
        transactions=[transaction(), transaction(OTHER)]
    )
    result = coordctl("list", "--limit", "2", "-o", "json")
    assert json.loads(result.out)["truncated"] is False
    assert result.err == ""


def test_list_check_is_4_only_when_something_is_listed(coordctl: Coordctl) -> None:
    assert coordctl("list", "--in-doubt", "--check").code == 0
    coordctl.fake.answers["List"] = coordinator_pb2.ListResponse(transactions=[transaction()])
    assert coordctl("list", "--in-doubt", "--check").code == 4
    assert coordctl("list", "--in-doubt").code == 0
    assert coordctl("list", "--check").code == 2


def test_list_without_transactions(coordctl: Coordctl) -> None:
    assert coordctl("list").out == "no transactions\n"
    assert json.loads(coordctl("list", "-o", "json").out) == {"transactions": [], "truncated": False}


def test_show_draws_a_lane_for_every_branch(coordctl: Coordctl) -> None:
    result = coordctl("show", GTRID)
    assert (result.code, result.err) == (0, "")
    assert coordctl.fake.of("Get")[0].gtrid == GTRID
    assert "attention  BLOCKED\nevidence   live\n" in result.out
    assert result.out.endswith(
        """\
                         transaction       orders       stock
03:04:05.000Z      +0ms  ● begun           │            │
03:04:05.002Z      +2ms  │                 ● enlisted   │
03:04:05.003Z      +3ms  │                 │            ● enlisted
03:04:05.009Z      +9ms  │                 │            ● voted OK
03:04:05.009Z      +9ms  │                 ● voted OK   │
03:04:05.010Z     +10ms  ● decided COMMIT  │            │
03:04:05.012Z     +12ms  │                 ● committed  │
"""
    )


def test_show_lists_the_timeline_where_lanes_do_not_fit(coordctl: Coordctl) -> None:
    many = [
        coordinator_pb2.Branch(participant=f"participant-{number}", number=number) for number in range(30)
    ]
    events = [
        coordinator_pb2.Event(what="voted OK", participant="participant-7"),
        coordinator_pb2.Event(what="begun"),
    ]
    coordctl.fake.answers["Get"] = coordinator_pb2.GetResponse(
        transaction=transaction(branches=many, timeline=events)
    )
    lines = coordctl("show", GTRID).out.splitlines()
    assert lines[-2].split() == ["00:00:00.000Z", "+0ms", "participant-7", "voted", "OK"]
    assert lines[-1].split() == ["00:00:00.000Z", "+0ms", "transaction", "begun"]


def test_show_as_json_has_stable_keys(coordctl: Coordctl) -> None:
    rejection = coordinator_pb2.Rejection(
        reason="EXPECTATION_FAILED", message="0 rows instead of 1", participant="orders", statement=0
    )
    coordctl.fake.answers["Get"] = coordinator_pb2.GetResponse(
        transaction=transaction(rejection=rejection), evidence="log"
    )
    document = json.loads(coordctl("show", GTRID, "-o", "json").out)
    assert list(document) == ["transaction", "evidence"]
    row = document["transaction"]
    assert list(row) == (
        [
            "gtrid",
            "state",
            "outcome",
            "begun_at",
            "age_seconds",
            "in_doubt",
            "blocked",
            "recovered",
            "forgotten",
            "rejection",
            "branches",
            "timeline",
        ]
    )
    assert row["state"] == "COMMITTING"
    assert row["begun_at"] == "2026-01-02T03:04:05Z"
    assert row["age_seconds"] == 245.5
    assert row["branches"][1] == {
        "participant": "stock",
        "number": 2,
        "state": "PREPARED",
        "outcome": "UNKNOWN",
        "attempts": 7,
        "last_error": "SERVER_UNAVAILABLE: 2003",
        "waits_for": [],
    }
    assert row["timeline"][1] == {
        "at": "2026-01-02T03:04:05.002Z",
        "participant": "orders",
        "what": "enlisted",
    }
    assert row["rejection"]["statement"] == 0
    assert row["rejection"]["errno"] is None


def test_show_of_a_transaction_that_is_not_known(
    coordctl: Coordctl, error: Callable[..., XacoordError]
) -> None:
    coordctl.fake.answers["Get"] = error("UNKNOWN_TRANSACTION", "nothing is known of it")
    result = coordctl("show", GTRID)
    assert (result.code, result.out) == (3, "")
    assert result.err == "coordctl: UNKNOWN_TRANSACTION: nothing is known of it\n"


def test_values_of_a_newer_server_are_shown_as_numbers(coordctl: Coordctl) -> None:
    coordctl.fake.answers["Get"] = coordinator_pb2.GetResponse(transaction=transaction(state=99))
    assert json.loads(coordctl("show", GTRID, "-o", "json").out)["transaction"]["state"] == "99"


def test_what_the_witness_rows_do_not_tell_is_unknown(coordctl: Coordctl) -> None:
    bare = coordinator_pb2.Transaction(gtrid=GTRID)
    coordctl.fake.answers["Get"] = coordinator_pb2.GetResponse(transaction=bare, evidence="witness rows")
    result = coordctl("show", GTRID)
    assert result.out.startswith(
        f"gtrid     {GTRID}\nstate     UNKNOWN\noutcome   UNKNOWN\nevidence  witness rows\n"
    )


def test_watch_prints_a_line_for_every_change(coordctl: Coordctl) -> None:
    pb = coordinator_pb2
    coordctl.fake.answers["Watch"] = [
        pb.WatchResponse(transaction=transaction()),
        pb.WatchResponse(transaction=transaction(state=pb.STATE_COMMITTED, blocked=False, in_doubt=False)),
    ]
    result = coordctl("watch", GTRID)
    assert result.code == 0
    assert [line.split()[1] for line in result.out.splitlines()] == ["COMMITTING", "COMMITTED"]
    assert result.out.splitlines()[0].endswith(
        "COMMITTED    BLOCKED  orders NON_EXISTENT, stock PREPARED after 7 attempts"
    )
    documents = [json.loads(line) for line in coordctl("watch", GTRID, "-o", "json").out.splitlines()]
    assert [document["transaction"]["state"] for document in documents] == ["COMMITTING", "COMMITTED"]


def test_participants(coordctl: Coordctl) -> None:
    coordctl.fake.answers["Participants"] = admin_pb2.ParticipantsResponse(
        participants=[
            participant("orders", 1),
            participant("stock", 2, state="HOLD", foreign=2, witness=False, scanned_seconds_ago=-1),
        ]
    )
    lines = coordctl("participants").out.splitlines()
    assert lines[1].split()[:3] == ["orders", "1", "UP"]
    assert " ".join(lines[2].split()) == "stock 2 HOLD 0 0 2 0 never no 127.0.0.1:7502 MySQL 9.7.4"
    rows = json.loads(coordctl("participants", "-o", "json").out)["participants"]
    assert [(row["participant"], row["state"], row["witness"]) for row in rows] == [
        ("orders", "UP", True),
        ("stock", "HOLD", False),
    ]


def test_log(coordctl: Coordctl) -> None:
    coordctl.fake.answers["LogStatus"] = log_status(room=False)
    result = coordctl("log")
    assert "size         128.0 MiB\n" in result.out
    assert "room         NO: new transactions are refused\n" in result.out
    assert "last flush   0.12 ms\n" in result.out
    assert json.loads(coordctl("log", "-o", "json").out)["durable_lsn"] == 1200


HEX = GTRID.encode().hex()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (GTRID, [1, 2, 3]),
        (HEX, [1, 2, 3]),
        (f"0x{HEX.upper()}", [1, 2, 3]),
        (f"0x{HEX}30303161", [46]),
        (f"{GTRID}001a", [46]),
        (f"X'{HEX}',X'30303161',1", [46]),
        (f"X'{HEX}'", [1, 2, 3]),
    ],
)
def test_xid_takes_every_form_in_which_people_meet_an_id(
    coordctl: Coordctl, text: str, numbers: list[int]
) -> None:
    result = coordctl("xid", text, "-o", "json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["gtrid"], document["coordinator_id"], document["epoch"]) == (GTRID, "a0b1", 3)
    assert document["counter"] == int("000000abcd", 36) >> 16
    assert [branch["number"] for branch in document["branches"]] == numbers
    assert coordctl.fake.requests == []


def test_xid_writes_the_sql_of_a_branch(coordctl: Coordctl) -> None:
    name = f"X'{HEX}',X'30303161',1"
    lines = coordctl("xid", GTRID, "--number", "46").out.splitlines()
    assert lines[-2:] == [f"46      001a   XA COMMIT {name}", f"46      001a   XA ROLLBACK {name}"]
    (warning,) = [number for number, line in enumerate(lines) if line.startswith("WARNING: ")]
    assert f"`coordctl show {GTRID}` and `coordctl recover --dry-run`" in lines[warning]
    assert not any("XA " in line for line in lines[:warning])
    document = json.loads(coordctl("xid", GTRID, "--number", "46", "-o", "json").out)
    assert document["warning"] == lines[warning]
    (branch,) = document["branches"]
    assert (branch["commit_sql"], branch["rollback_sql"]) == (f"XA COMMIT {name}", f"XA ROLLBACK {name}")


@pytest.mark.parametrize(
    "text", ["", "k1", "x" * 20, GTRID + "0", HEX[:-1], f"0x{HEX}3030", f"X'{HEX}',X'2d',1"]
)
def test_what_is_no_id_is_refused_before_anybody_is_called(coordctl: Coordctl, text: str) -> None:
    for command in ("xid", "show", "watch"):
        result = coordctl(command, text)
        assert result.code == 65, result
        assert result.err.startswith("coordctl: INVALID_GTRID: ")
        assert result.err.count("\n") == 1
    assert coordctl.fake.requests == []
