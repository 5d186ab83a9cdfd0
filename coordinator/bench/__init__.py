"""How fast the log is on the disk at hand; `coordctl wal bench` runs it.

A figure for a log says little without the disk's own: so the floor, one block written and flushed, is
measured between the others, and each is reported as a multiple of its neighbour.
"""
