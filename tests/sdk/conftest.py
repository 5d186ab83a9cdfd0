"""Fixtures of the SDK's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sdk import streaming
from tests.sdk.fakes import World
from xacoord import TransactionManager

GRACE_SECONDS = 0.6


@pytest.fixture
def world() -> Iterator[World]:
    """Servers of one test."""
    world = World()
    yield world
    world.servers.stop()


@pytest.fixture(params=["unary", "stream"])
def tm(
    world: World, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TransactionManager]:
    """A manager connected to `world`; with "stream" all its calls go over streams."""
    if request.param == "stream":
        streaming.always(monkeypatch)
    with TransactionManager.connect(world.address, grace=GRACE_SECONDS) as manager:
        yield manager
