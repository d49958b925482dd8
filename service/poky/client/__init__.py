"""A client for programs: objects, batches, lists and changes of a Poky, over HTTP.

Needs the extra ``client`` (urllib3). Knows the contract (docs/http-api.md) and nothing of the
service. docs/client.md shows how it is used.
"""

try:
    import urllib3  # noqa: F401
except ImportError:
    raise ImportError(
        "poky.client needs urllib3: install the extra, pip install 'poky[client]'."
    ) from None

from poky.client.buckets import Bucket, Change, Listed, Object, Result
from poky.client.client import Client
from poky.client.wire import ConditionFailed, Error, OutcomeUnknown, Unavailable

__all__ = [
    "Bucket",
    "Change",
    "Client",
    "ConditionFailed",
    "Error",
    "Listed",
    "Object",
    "OutcomeUnknown",
    "Result",
    "Unavailable",
]
