"""The participant agent: speaks for one resource manager, that is one MySQL or MariaDB server.

Guarantees: it never says COMMITTED or ROLLED_BACK without proof; a vote OK means durably prepared; a lower
epoch never acts after a higher one was fenced; one agent acts for a participant at a time.

`core/` decides and does no I/O; the modules beside it perform what it asks for. MySQLdb is imported in
`session.py` alone. This file imports nothing, because others import only `participant_agent.v1`.
"""
