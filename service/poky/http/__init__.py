"""HTTP/1.1 on sockets for any WSGI application, and the shapes of answers. Knows nothing of ours.

Reading order: `answers`, `head`, `later`, `connection`, `stream`, `workers`,
`server`.
"""

from poky.http.answers import CODES, Answer, Refused, bare, json, problem, refuse, text
from poky.http.connection import Connection
from poky.http.head import Environ, Headers, parse_head, path_of
from poky.http.later import Later, Reply
from poky.http.memory import Budget, Reservation
from poky.http.server import CannotListen, Server
from poky.http.stream import Stream
from poky.http.workers import Workers

__all__ = [
    "CODES",
    "Answer",
    "Budget",
    "CannotListen",
    "Connection",
    "Environ",
    "Headers",
    "Later",
    "Refused",
    "Reply",
    "Reservation",
    "Server",
    "Stream",
    "Workers",
    "bare",
    "json",
    "parse_head",
    "path_of",
    "problem",
    "refuse",
    "text",
]
