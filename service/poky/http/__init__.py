"""HTTP/1.1 on sockets for any WSGI application, and the shapes of answers. Knows nothing of ours.

Reading order: `head`, `connection`, `answers`.
"""

from poky.http.answers import Answer, Refused, bare, json, problem, refuse, text
from poky.http.connection import Connection, Server, Workers
from poky.http.head import Refusal, parse_head

__all__ = [
    "Answer",
    "Connection",
    "Refusal",
    "Refused",
    "Server",
    "Workers",
    "bare",
    "json",
    "parse_head",
    "problem",
    "refuse",
    "text",
]
