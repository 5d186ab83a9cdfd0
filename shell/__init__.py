"""What the two daemons share around their cores: configuration, logs, error status, Session
streams, failpoints.

Guarantees: nothing here decides anything about a transaction. It imports `dtp` and libraries only;
the SDK does not import it.
"""
