"""The transaction manager.

Guarantees: a transaction is reported COMMITTED only after its COMMIT record is durable; a decision
never changes; an outcome that is not known is UNKNOWN; branches that are not ours are never touched.
`core` decides and does no I/O; everything else here performs what it decides.
"""
