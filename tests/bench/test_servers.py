"""A benchmark's servers: what is put away after an interruption."""

from __future__ import annotations

import signal

import pytest

from deploy.bench.servers import BenchError, Server, Target, given
from deploy.private_servers import PrivateServer

_DATABASE = "bench_interrupted"


def _server(private: PrivateServer) -> Server:
    return given(Target("one", "root", socket=str(private.socket), database=_DATABASE))


@pytest.mark.engines("mysql")
def test_interrupted_in_the_middle_of_a_statement(
    two_servers: tuple[PrivateServer, PrivateServer],
) -> None:
    """Its answer is not taken for the next one's; and nobody else gets the database meanwhile."""
    server, _ = two_servers
    ours = _server(server)
    ours.claim()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            ours.sql("SELECT SLEEP(0.3)")
    finally:
        signal.signal(signal.SIGALRM, handler)
    with pytest.raises(BenchError, match="is in a benchmark already"):
        _server(server).claim()
    assert ours.sql("SELECT 42") == [(42,)]
    ours.release()
    assert (_DATABASE,) not in server.sql("SHOW DATABASES")
