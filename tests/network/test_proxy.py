"""The proxy itself: a test with a proxy that breaks nothing proves nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.network.proxy import Background, Proxy, Way


class Echo(threading.Thread):
    """Answers every byte with itself."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.listener.shutdown(socket.SHUT_RDWR)
    server.listener.close()
    server.join()


@pytest.fixture
def proxies(echo: Echo) -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


def _connect(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=0.2)
    return connection


def _receive(connection: socket.socket, seconds: float = 5.0) -> bytes:
    connection.settimeout(seconds)
    return connection.recv(4096)


def _silent(connection: socket.socket) -> bool:
    try:
        _receive(connection, 0.15)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("way", Way)
def test_cut_keeps_and_heal_delivers_in_order(echo: Echo, proxies: Background, way: Way) -> None:
    proxy = Proxy(proxies, echo.address)
    with _connect(proxy) as connection:
        connection.sendall(b"a")
        assert _receive(connection) == b"a"
        proxy.cut(way)
        connection.sendall(b"b")
        assert _silent(connection)
        assert proxy.passed[Way.THERE] == (1 if way is Way.THERE else 2)
        with _connect(proxy) as new:
            new.sendall(b"n")
            assert _silent(new), "a connection needs both directions"
            proxy.heal()
            assert _receive(new) == b"n"
        connection.sendall(b"c")
        got = _receive(connection)
        assert (got if len(got) == 2 else got + _receive(connection)) == b"bc"


def test_heal_can_lose(echo: Echo, proxies: Background) -> None:
    proxy = Proxy(proxies, echo.address)
    with _connect(proxy) as idle, _connect(proxy) as connection:
        for each in (idle, connection):
            each.sendall(b"a")
            assert _receive(each) == b"a"
        proxy.cut(Way.BACK)
        connection.sendall(b"b")
        assert _silent(connection)
        proxy.heal(lose=True)
        with pytest.raises(ConnectionResetError):
            _receive(connection)
        idle.sendall(b"c")
        assert _receive(idle) == b"c", "nothing of it was kept, so it survives"


def test_delay_refuse_reset_half_close_and_strand(echo: Echo, proxies: Background) -> None:
    proxy = Proxy(proxies, echo.address)
    proxy.delay(0.1)
    with _connect(proxy) as connection:
        started = time.monotonic()
        connection.sendall(b"a")
        assert _receive(connection) == b"a"
        assert time.monotonic() - started >= 0.2, "0.1 s there and 0.1 s back"
        proxy.refuse()
        with pytest.raises(ConnectionResetError), _connect(proxy) as refused:
            _receive(refused)
        proxy.heal()
        deliver = proxy.strand()
        connection.sendall(b"b")
        assert _silent(connection)
        with _connect(proxy) as new:
            new.sendall(b"n")
            assert _receive(new) == b"n"
            proxy.half_close(Way.BACK)
            assert _receive(new) == b""
        deliver()
        assert _receive(connection) == b"", "half-closed before"
    with _connect(proxy) as connection:
        connection.sendall(b"a")
        assert _receive(connection) == b"a"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            _receive(connection)


def test_hold_recognises_packets_of_mysql_however_they_are_cut(echo: Echo, proxies: Background) -> None:
    def packet(text: bytes) -> bytes:
        return len(text).to_bytes(3, "little") + b"\0" + text

    proxy = Proxy(proxies, echo.address, mysql=True)
    hold = proxy.hold(b"XA PREPARE")
    with _connect(proxy) as connection:
        before, held, behind = packet(b"XA END 'x'"), packet(b"XA PREPARE 'x'"), packet(b"SELECT 1")
        for byte in before + held + behind:
            connection.sendall(bytes([byte]))
        hold.wait()
        got = b""
        while len(got) < len(before):
            got += _receive(connection)
        assert got == before
        assert _silent(connection)
        with _connect(proxy) as second:
            second.sendall(held)
            assert _receive(second) == held, "held once"
        hold.release()
        got = b""
        while len(got) < len(held + behind):
            got += _receive(connection)
        assert got == held + behind
        lost = proxy.hold(b"XA COMMIT")
        connection.sendall(packet(b"XA COMMIT 'x'"))
        lost.wait()
        lost.release(lose=True)
        with pytest.raises(ConnectionResetError):
            _receive(connection)
