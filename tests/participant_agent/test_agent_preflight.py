"""Preflight on scripted servers: what real ones of the tests cannot be made to say."""

from __future__ import annotations

from participant_agent.core.effects import Ok, OnControl, Result, ServerError
from participant_agent.core.engine import Engine
from participant_agent.core.preflight import Check, Server, Severity, preflight

DENIED = ServerError(1142, "SELECT command denied")


def checks(answers: dict[str, Result]) -> dict[str, Check]:
    """What preflight finds on a MySQL server that answers so, and everything else with 1."""
    server = Server(Engine.MYSQL, "9.7.4", "identity", "", 16384)
    procedure = preflight(server, "xacoord", True, ())
    try:
        effect = next(procedure)
        while True:
            assert isinstance(effect, OnControl)
            sql = effect.query.sql
            answer = next((answer for key, answer in answers.items() if key in sql), None)
            rows = () if sql.startswith("XA RECOVER") else ((b"1",),)
            effect = procedure.send(answer or Ok(rows, len(rows)))
    except StopIteration as stop:
        return {check.name: check for check in stop.value}


def test_who_may_not_see_lock_waits_is_warned() -> None:
    assert checks({})["performance_schema"].severity is Severity.OK
    off = checks({"@@global.performance_schema": Ok(((b"0",),), 1)})["performance_schema"]
    denied = checks({"data_lock_waits": DENIED})["performance_schema"]
    process = checks({"innodb_trx": DENIED})["process"]
    for check in (off, denied, process):
        assert check.severity is Severity.WARN
        assert "deadlocks across servers" in check.fix
    assert "performance_schema = ON" in off.fix
    assert "GRANT SELECT ON performance_schema.*" in denied.fix
    assert "GRANT PROCESS" in process.fix
