"""Contention: few rows that many clients want, with branches in both orders (docs/decisions/0013)."""
