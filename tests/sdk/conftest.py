"""Fixtures of the SDK's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sdk.fakes import World
from xacoord import TransactionManager

GRACE_SECONDS = 0.6


@pytest.fixture
def world() -> Iterator[World]:
    """Servers of one test."""
    world = World()
    yield world
    world.servers.stop()


@pytest.fixture
def tm(world: World) -> Iterator[TransactionManager]:
    """A manager connected to `world`."""
    with TransactionManager.connect(world.address, grace=GRACE_SECONDS) as manager:
        yield manager
