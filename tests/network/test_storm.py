"""All links break at random while the bank's clients work: what they were told is what the servers hold."""

from __future__ import annotations

import pytest

from tests.network.net import Net
from tests.network.storm import weather


@pytest.mark.parametrize("seed", [1])
def test_storm(net: Net, seed: int) -> None:
    assert weather(net, seed, 4.0) > 10
