"""The agent's decisions, without I/O: no asyncio, grpc, MySQLdb, clocks, random numbers or files.

A *procedure* is a generator that yields effects (`effects.py`) and is sent their results; its return value
says what became of the branch. `agent.py` performs them against a server, the simulator against a twin.
"""
