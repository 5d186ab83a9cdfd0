"""Agents in the coordinator's process: how they start, and what happens where they cannot."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from coordinator import embedded
from coordinator.agents import LinkDown
from coordinator.embedded import EmbeddedAgent
from participant_agent.agent import Agent
from participant_agent.core.preflight import Check
from participant_agent.host import Host, NotStarted

PATIENCE_SECONDS = 10.0


def make(directory: Path, listen: str = "127.0.0.1:0") -> EmbeddedAgent:
    path = directory / "agent.toml"
    path.write_text(
        f'[agent]\nparticipant = "orders"\nlisten = "{listen}"\n'
        '[mysql]\nuser = "nobody"\nunix_socket = "/nowhere"\n'
    )
    return EmbeddedAgent("orders", path)


async def first_attempt(agent: EmbeddedAgent) -> None:
    """Until it has ended."""
    task = asyncio.create_task(agent.keep())
    await asyncio.wait_for(agent.tried.wait(), PATIENCE_SECONDS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_whatever_goes_wrong_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [RuntimeError("a mistake"), NotStarted("cannot start"), OSError("no files")]

    async def start(_host: Host) -> int:
        if errors:
            raise errors.pop(0)
        return 7430

    monkeypatch.setattr(Host, "start", start)
    monkeypatch.setattr(embedded, "_PAUSE_SECONDS", 0.0)
    agent = make(tmp_path)

    async def test() -> None:
        await asyncio.wait_for(agent.keep(), PATIENCE_SECONDS)
        assert agent.tried.is_set()

    asyncio.run(test())
    assert (errors, agent.error) == ([], "")
    assert agent.host is not None


def test_why_it_does_not_serve_is_told_whatever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(_host: Host) -> int:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Host, "start", start)
    agent = make(tmp_path)
    asyncio.run(first_attempt(agent))
    assert agent.error == "RuntimeError: a mistake"


def test_who_cannot_listen_takes_nothing_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another agent's sessions would be ended for nothing, again and again."""
    started = []

    async def start(agent: Agent) -> list[Check]:
        started.append(agent)
        return []

    monkeypatch.setattr(Agent, "start", start)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        agent = make(tmp_path, address)
        asyncio.run(first_attempt(agent))
    assert started == []
    assert f"agent.listen: cannot listen at {address}" in agent.error


def test_a_start_that_fails_in_the_middle_leaves_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def start(agent: Agent) -> list[Check]:
        monkeypatch.setattr(agent.control, "close", lambda: closed.append(agent))
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Agent, "start", start)
    asyncio.run(first_attempt(make(tmp_path)))
    assert len(closed) == 1


def test_a_look_at_a_server_that_is_away_says_why(tmp_path: Path) -> None:
    with pytest.raises(LinkDown, match=r"cannot use the server: .*/nowhere"):
        asyncio.run(make(tmp_path).look())
