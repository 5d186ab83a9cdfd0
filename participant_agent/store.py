"""Store: the agent's two tables, in its own schema on the participant's server.

`coordinator`: one row per coordinator and participant: the fence. `witness`: one row per branch that
committed something; present = committed. Both are InnoDB with names in ascii_bin, so that the order of gtrids
is the order of their bytes.
"""

from __future__ import annotations

from participant_agent.core.effects import Ok, OnControl, Procedure, Query, Result

_TABLES = (
    """CREATE TABLE IF NOT EXISTS {schema}.coordinator (
    coordinator_id CHAR(4) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    participant VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    number INT UNSIGNED NOT NULL,
    epoch INT UNSIGNED NOT NULL,
    nonce BIGINT UNSIGNED NOT NULL,
    log_identity BINARY(16) NOT NULL,
    purged_to CHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
    PRIMARY KEY (coordinator_id, participant)
) ENGINE = InnoDB""",
    """CREATE TABLE IF NOT EXISTS {schema}.witness (
    gtrid CHAR(20) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    bqual CHAR(4) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    participants VARCHAR(400) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    PRIMARY KEY (gtrid, bqual)
) ENGINE = InnoDB""",
)


def create(schema: str) -> Procedure[Result | None]:
    """Create what is missing; returns the server's refusal, or None where all is there.

    Existing tables are not touched by a CREATE, which would wait for branches that hold them.
    """
    for table, sql in zip(("coordinator", "witness"), _TABLES, strict=True):
        there = yield OnControl(Query(f"SELECT COUNT(*) FROM {schema}.{table} WHERE FALSE"))
        if isinstance(there, Ok):
            continue
        yield OnControl(Query(f"CREATE DATABASE IF NOT EXISTS {schema}"))
        made = yield OnControl(Query(sql.replace("{schema}", schema)))
        if not isinstance(made, Ok):
            return made
    return None
