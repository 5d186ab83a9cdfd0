"""coordctl, the operator's command line.

Guarantees: every command ends with one of the exit codes of `errors.ExitCode`; an error is one line on
standard error; text that came from elsewhere reaches a terminal without its control characters; nothing
here decides about a transaction: it asks the coordinator, or `coordinator.offline` on a stopped one's log.

Nothing at the top of these modules imports grpc, protobuf, msgspec, rich or wal (`coordctl --help` takes
under 100 ms): commands import them when they run.
"""
