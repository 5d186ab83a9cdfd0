"""XA return codes: the numbers of the XA specification and the class each belongs to.

MySQL and MariaDB report them as errors of their own numbers; `ReturnCode.from_errno` is the
one place that knows both.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class ReturnClass(Enum):
    """What kind of answer a return code is."""

    OK = "OK"
    ROLLBACK = "ROLLBACK"
    HEURISTIC = "HEURISTIC"
    RETRY = "RETRY"
    ERROR = "ERROR"


class ReturnCode(IntEnum):
    """Return codes of the XA interface (XA specification, chapter 4.3, <xa.h>)."""

    XA_RBROLLBACK = 100
    XA_RBCOMMFAIL = 101
    XA_RBDEADLOCK = 102
    XA_RBINTEGRITY = 103
    XA_RBOTHER = 104
    XA_RBPROTO = 105
    XA_RBTIMEOUT = 106
    XA_RBTRANSIENT = 107
    XA_HEURHAZ = 8
    XA_HEURCOM = 7
    XA_HEURRB = 6
    XA_HEURMIX = 5
    XA_RETRY = 4
    XA_RDONLY = 3
    XA_OK = 0
    XAER_ASYNC = -2
    XAER_RMERR = -3
    XAER_NOTA = -4
    XAER_INVAL = -5
    XAER_PROTO = -6
    XAER_RMFAIL = -7
    XAER_DUPID = -8
    XAER_OUTSIDE = -9

    @property
    def return_class(self) -> ReturnClass:
        """The class of this code."""
        if self.value >= 100:
            return ReturnClass.ROLLBACK
        if self.value >= 5:
            return ReturnClass.HEURISTIC
        if self is ReturnCode.XA_RETRY:
            return ReturnClass.RETRY
        return ReturnClass.OK if self.value >= 0 else ReturnClass.ERROR

    @classmethod
    def from_errno(cls, errno: int) -> ReturnCode | None:
        """The return code behind a MySQL or MariaDB error number, or None where it is no XA error."""
        return _BY_ERRNO.get(errno)


_BY_ERRNO = {
    1397: ReturnCode.XAER_NOTA,
    1398: ReturnCode.XAER_INVAL,
    1399: ReturnCode.XAER_RMFAIL,
    1400: ReturnCode.XAER_OUTSIDE,
    1401: ReturnCode.XAER_RMERR,
    1402: ReturnCode.XA_RBROLLBACK,
    1440: ReturnCode.XAER_DUPID,
    1613: ReturnCode.XA_RBTIMEOUT,
    1614: ReturnCode.XA_RBDEADLOCK,
}
