"""Guard: which statements a client may run inside a branch, decided from the text alone.

Why: a statement that commits implicitly, ends the branch itself or gives up the session's user locks would
break what the agent promises. The server refuses most of them (1399), some it runs (SET, LOCK functions, INTO
OUTFILE). So only statements that begin with an allowed word pass, after comments and literals are taken out;
the reading of literals follows the session's sql_mode, which pool.py pins. Executable comments are refused as
a whole: they are code that looks like a comment.

The same pass finds the `%s` placeholders: one inside a literal or a comment is refused, because a parameter
there could end it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from dtp import Reason, XacoordError

MAX_STATEMENT_BYTES = 1 << 20
MAX_PARAMETERS = 65535
OWN_SCHEMA = "xacoord"
# Longer texts are rarely sent twice, and a thousand of them would be much to keep.
_REMEMBERED_CHARACTERS = 4096

# First word -> True where the statement probably only reads, so that asking the write counters can pay.
_ALLOWED: dict[str, bool] = {
    "SELECT": True,
    "WITH": True,
    "VALUES": True,
    "TABLE": True,
    "SHOW": True,
    "EXPLAIN": True,
    "DESCRIBE": True,
    "DESC": True,
    "INSERT": False,
    "UPDATE": False,
    "DELETE": False,
    "REPLACE": False,
    "CALL": False,
    "DO": True,
    "SAVEPOINT": True,
}

# Anywhere in the statement, outside of literals and comments.
_FORBIDDEN = re.compile(
    r"\b(GET_LOCK|RELEASE_LOCK|RELEASE_ALL_LOCKS)\b|\bINTO\s+(OUTFILE|DUMPFILE)\b", re.IGNORECASE
)
_ROLLBACK_TO = re.compile(r"ROLLBACK\s+(WORK\s+)?TO\s+(SAVEPOINT\s+)?[\w$`]+$", re.IGNORECASE)
_RELEASE = re.compile(r"RELEASE\s+SAVEPOINT\s+[\w$`]+$", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"\s*@([\w$.]+|`q`|'')\s*:?=")
# "--" begins a comment where a blank, an ASCII control character or the end follows, as servers read it.
_OPEN = re.compile(r"""['"`]|/\*|\#|--(?=[\x00-\x20\x7f]|\Z)|%""")


def _literal(quote: str, escapes: bool) -> re.Pattern[str]:
    """A literal or quoted name; a doubled quote is one of its characters."""
    backslash = r"\\." if escapes else r"\\"
    return re.compile(rf"{quote}(?:[^{quote}\\]++|{quote}{quote}|{backslash})*+{quote}", re.DOTALL)


_LITERALS = {(quote, escapes): _literal(quote, escapes) for quote in "'\"`" for escapes in (True, False)}
# No semicolon, no comment, no backslash, and quotes only round literals without any of these.
_SIMPLE = re.compile(r"""(?:[^;'"`\\#/-]|-(?!-)|/(?!\*)|'[^;'"`\\#/-]*')*+""")
_RETURNING = re.compile(r"\bRETURNING\b", re.IGNORECASE)  # MariaDB's: a change that answers with rows
_FIRST_WORD = re.compile(r"[\s(]*([A-Za-z_]+)")


@dataclass(frozen=True, slots=True)
class Guarded:
    """A statement that may run.

    Attributes:
        placeholders: how many `%s` it has.
        plain_read: its first word says that it only reads.
        calls: it calls a procedure, which can change settings of its session.
        quoted_placeholder: a `%s` is inside a literal or a comment, which parameters forbid.
        simple: no sql_mode and no mistake of ours could find a second statement in it; and no RETURNING.
    """

    placeholders: int
    plain_read: bool
    quoted_placeholder: bool = False
    calls: bool = False
    simple: bool = False


def refused(message: str) -> XacoordError:
    """The error for a statement that may not run."""
    return XacoordError(Reason.STATEMENT_REFUSED, message)


def guard(
    sql: str, backslash_escapes: bool = True, ansi_quotes: bool = False, schema: str = OWN_SCHEMA
) -> Guarded:
    """Check one statement.

    Args:
        sql: its text.
        backslash_escapes: False where the session's sql_mode has NO_BACKSLASH_ESCAPES.
        ansi_quotes: True where it has ANSI_QUOTES: then "x" is a name, in which a backslash escapes nothing.
        schema: the agent's own, whose tables are what proves outcomes.

    Raises:
        XacoordError: STATEMENT_REFUSED, saying what to do instead.
    """
    if len(sql) <= _REMEMBERED_CHARACTERS:
        return _remembered(sql, backslash_escapes, ansi_quotes, schema)
    if len(sql.encode("utf-8", "surrogatepass")) > MAX_STATEMENT_BYTES:
        raise refused("the statement is longer than 1 MiB; send less at once or use parameters")
    return _guard(sql, backslash_escapes, ansi_quotes, schema)


def _guard(sql: str, backslash_escapes: bool, ansi_quotes: bool, schema: str) -> Guarded:
    if "\x00" in sql:
        raise refused("the statement has a NUL character; send binary values as parameters")
    bare, placeholders, quoted = _strip(sql, backslash_escapes, ansi_quotes, schema.lower())
    if re.search(rf"\b{re.escape(schema)}\s*\.", bare, re.IGNORECASE):
        raise refused(f"the tables of schema {schema} are the agent's: they prove what has committed")
    bare = bare.strip().rstrip(";").rstrip()
    if ";" in bare:
        raise refused("one statement at a time: send several as several statements of the call")
    word = _check(bare)
    simple = _SIMPLE.fullmatch(sql) is not None and _RETURNING.search(bare) is None
    return Guarded(placeholders, _ALLOWED.get(word, True), quoted, calls=word == "CALL", simple=simple)


_remembered = lru_cache(maxsize=1024)(_guard)


def _check(bare: str) -> str:
    """The first word of a statement that may run."""
    found = _FIRST_WORD.match(bare)
    word = found[1].upper() if found else ""
    if forbidden := _FORBIDDEN.search(bare):
        what = " ".join(forbidden[0].upper().split())
        raise refused(f"{what} cannot be used inside a branch: it acts beyond the transaction")
    if word == "ROLLBACK" and _ROLLBACK_TO.match(bare):
        return word
    if word == "RELEASE" and _RELEASE.match(bare):
        return word
    if word == "SET":
        if all(_ASSIGNMENT.match(part) for part in _top_level_parts(bare[found.end() if found else 0 :])):
            return word
        raise refused("only user variables (SET @name = ...) can be set inside a branch")
    if word not in _ALLOWED:
        raise refused(
            f"{word or 'this'} is not a statement that can run inside a branch: end transactions through the "
            "coordinator, and change schemas and settings outside of them"
        )
    return word


def _top_level_parts(text: str) -> list[str]:
    """`text` split at the commas outside of parentheses."""
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[begin:place])
            begin = place + 1
    return [*parts, text[begin:]]


def _strip(sql: str, backslash_escapes: bool, ansi_quotes: bool, schema: str) -> tuple[str, int, bool]:
    """`sql` with literals as `''`, quoted names as a letter and comments as blanks, and its number of
    placeholders."""
    parts: list[str] = []
    place, placeholders, quoted = 0, 0, False
    while found := _OPEN.search(sql, place):
        parts.append(sql[place : found.start()])
        token = found[0]
        if token == "%":
            kind = sql[found.start() + 1 : found.start() + 2]
            if kind == "s":
                placeholders += 1
                parts.append("?")
            else:
                parts.append("%")
            place = found.end() + (1 if kind in ("s", "%") and kind else 0)
            continue
        if token in "'\"`":
            is_name = token == "`" or (token == '"' and ansi_quotes)
            end = _end_of_literal(sql, found.start(), token, backslash_escapes and not is_name)
            name = sql[found.start() + 1 : end - 1]
            if token != "'" and (_FORBIDDEN.fullmatch(name) or name.lower() == schema):
                parts.append(f" {name} ")  # servers take a quoted name for the function, too
            else:
                parts.append("`q`" if is_name else "''")
        else:
            end = _end_of_comment(sql, found.start(), token)
            parts.append(" ")
        inside = sql[found.start() : end]
        quoted = quoted or "%s" in inside.replace("%%", "")
        place = end
    parts.append(sql[place:])
    return "".join(parts), placeholders, quoted


def _end_of_literal(sql: str, start: int, quote: str, backslash_escapes: bool) -> int:
    found = _LITERALS[quote, backslash_escapes].match(sql, start)
    if found is None:
        raise refused(f"the statement ends inside a literal that begins with {quote}")
    return found.end()


def _end_of_comment(sql: str, start: int, token: str) -> int:
    if token == "/*":
        if sql[start + 2 : start + 3] == "!" or sql[start + 2 : start + 4].upper() == "M!":
            raise refused("executable comments (/*! and /*M!) cannot be used inside a branch")
        end = sql.find("*/", start + 2)
        if end < 0:
            raise refused("the statement ends inside a comment")
        return end + 2
    end = sql.find("\n", start)
    return len(sql) if end < 0 else end
