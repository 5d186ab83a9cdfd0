"""The X/Open DTP vocabulary that every part of xacoord shares.

Guarantees: nothing here does I/O, reads a clock or draws a random number, and nothing here
imports another package of ours. The words are those of the X/Open CAE Specification
"Distributed Transaction Processing: The XA Specification" (C193).
"""

from dtp.branch import BranchEvent, BranchState, next_branch_state
from dtp.decision import Decision
from dtp.errors import Reason, XacoordError
from dtp.outcome import Outcome
from dtp.return_code import ReturnClass, ReturnCode
from dtp.vote import Vote
from dtp.xid import FORMAT_ID, Gtrid, Xid, format_bqual, parse_bqual

__all__ = [
    "FORMAT_ID",
    "BranchEvent",
    "BranchState",
    "Decision",
    "Gtrid",
    "Outcome",
    "Reason",
    "ReturnClass",
    "ReturnCode",
    "Vote",
    "XacoordError",
    "Xid",
    "format_bqual",
    "next_branch_state",
    "parse_bqual",
]
