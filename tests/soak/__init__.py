"""Soak: everything real, a fault every few seconds, for as long as one likes, and the invariants I1 to I9.

`tests/soak.sh --minutes N` runs it; docs/decisions/0010 says what it is for. It goes on until its time is
over, writes a report with every number that the verdict rests on, and ends with 1 after any violation.
"""
