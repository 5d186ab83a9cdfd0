"""What a scan asks must not cost the square of the number of prepared branches, which may be great."""

from __future__ import annotations

import pytest

from deploy.private_servers import PrivateServer
from participant_agent.core.effects import Ok, OnControl
from participant_agent.core.engine import Engine
from participant_agent.core.recovery import scan


@pytest.mark.engines("mysql")
def test_no_question_goes_through_all_pairs_of_transactions(shop: PrivateServer) -> None:
    """MySQL takes information_schema.innodb_trx for tiny, and would join it with itself."""
    asked = []
    procedure = scan(Engine.MYSQL)
    try:
        effect = next(procedure)
        while True:
            assert isinstance(effect, OnControl)
            asked.append(effect.query.sql)
            rows = tuple(shop.sql(effect.query.sql))
            effect = procedure.send(Ok(rows, len(rows), 0, 0))
    except StopIteration:
        pass
    plans = [str(shop.sql(f"EXPLAIN FORMAT=TREE {sql}")) for sql in asked if "JOIN" in sql]
    assert len(plans) == 1
    assert "data_lock_waits" in asked[-1]
    assert "no condition" not in plans[0], plans[0]
