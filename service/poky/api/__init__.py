"""The HTTP contract of docs/http-api.md: routes, handlers, refusals. No psycopg2, no sockets.

Reading order: `app`, then what its handlers use.
"""

from poky.api.app import ADMIN_ROUTES, ROUTES, Api

__all__ = ["ADMIN_ROUTES", "ROUTES", "Api"]
