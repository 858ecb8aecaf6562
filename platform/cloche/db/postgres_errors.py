"""What PostgreSQL's errors mean to Cloche: run the unit again, wait for the server, or a mistake of ours. And nothing secret in their texts."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cloche.errors import Unavailable

# The unit lost against another one: serialization failure (as on a server that sets another level), deadlock.
_AGAIN = {"40001", "40P01"}
_GONE = {"57P01", "57P02", "25P03"}  # the server's last words before it closes the connection
_TAKEN = "23505"  # a unique key that another transaction took meanwhile; the unit's own check sees it the next time
# SQLSTATE, or its class: what is the matter, in words that name neither host nor user nor value.
_STATES = {
    "53100": "its disk is full",
    "53300": "it takes no more connections (max_connections)",
    "53": "it is short of resources",
    "57P01": "it was stopped",
    "57P02": "it was stopped",
    "57P03": "it is starting or stopping",
    "57014": "a statement took longer than it may",
    "55P03": "a row stayed locked for too long",
    "25006": "it is read-only now, as a standby is",
    "25P03": "a transaction stood still for too long",
    "28": "it refuses this user name or password",
    "3D000": "it has no database of that name",
    "08": "the connection was lost",
    "58": "its host has trouble with files",
    "XX": "it has an internal error",
}
# What libpq says before there is a session, and so no SQLSTATE.
_PHRASES = (
    ("refused", "connection refused"),
    ("no answer within", "no answer in time"),
    ("timeout", "no answer in time"),
    ("translate host name", "its host's name is not known"),
    ("No such file", "its socket is not there"),
    ("password authentication", "it refuses this user name or password"),
    ("no password supplied", "it wants a password"),
    ("pg_hba", "its pg_hba.conf does not let this host or user in"),
    ("too many clients", "it takes no more connections (max_connections)"),
    ("remaining connection slots", "it takes no more connections (max_connections)"),
    ("starting up", "it is starting or stopping"),
    ("shutting down", "it is starting or stopping"),
    ("recovery", "it is starting or stopping"),
    ("does not exist", "it has no database or user of that name"),
    ("SSL", "TLS could not be agreed on"),
)


def state_of(error: BaseException) -> str:
    """The error's SQLSTATE, or ``""``."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(orig, "sqlstate", None) or "")


def is_conflict(error: BaseException) -> bool:
    """Whether the same unit may well succeed when it runs again at once."""
    return state_of(error) in _AGAIN


def is_taken(error: BaseException) -> bool:
    return state_of(error) == _TAKEN


def is_nul(error: BaseException) -> bool:
    """Whether a text held U+0000, which PostgreSQL has no place for. Only a caller's can."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(orig, psycopg.DataError) and not state_of(error) and "NUL" in str(orig)


def is_unassigned(error: BaseException) -> bool:
    """Whether the server was asked for a transaction id that it has not given to anybody yet (``pg_xact_status`` says so)."""
    return state_of(error) == "22023"


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, and what its transaction did with it, unless a commit was on its way."""
    state = state_of(error)
    if state in _GONE or state.startswith("08"):
        return True
    if isinstance(error, DBAPIError):
        return bool(error.connection_invalidated)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state


def unavailable(error: BaseException) -> Unavailable | None:
    """What to tell callers where the server, not the statement, is at fault; None for a mistake of ours (a constraint, a type, SQL)."""
    if isinstance(error, PoolTimeout):
        return Unavailable("the database is busy: all connections of this process are in use (database.pool_size)")
    why = _why(error)
    if why is None:
        return None
    if why == _STATES["53100"]:
        return Unavailable("the database's disk is full")
    return Unavailable(f"the database does not answer ({why})")


def _why(error: BaseException) -> str | None:
    state = state_of(error)
    if state:
        found = _STATES.get(state) or _STATES.get(state[:2])
        if found is None and is_conflict(error):
            return "transactions wait for each other's rows"
        return found
    orig = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(orig, psycopg.OperationalError | psycopg.InterfaceError):
        return None
    said = str(orig)
    return next((words for phrase, words in _PHRASES if phrase in said), "the connection was lost")


def without_values(error: psycopg.Error) -> str:
    """The error's text for a log. The server's details quote rows, and some of its messages the value they refuse: neither is kept."""
    state = state_of(error)
    if not state:
        own = isinstance(error, psycopg.OperationalError) or is_nul(error)  # texts of the driver, without values
        return str(error) if own else type(error).__name__
    name = f"{type(error).__name__}, SQLSTATE {state}"
    if state.startswith("22"):
        return name
    return f"{error.diag.message_primary or 'no message'} ({name})"
