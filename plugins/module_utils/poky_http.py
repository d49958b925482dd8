"""How the modules of this role ask an instance how it is."""

import http.client
import json
from typing import Any


def read_status(address: str, port: int, timeout: float = 2.0) -> dict[str, Any] | None:
    """What ``GET /status?verbose`` of an instance says, and its HTTP status as ``code``.

    None while nothing answers there within ``timeout`` seconds, or not in JSON.
    """
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request("GET", "/status?verbose", headers={"Accept": "application/json"})
        response = connection.getresponse()
        said = json.loads(response.read(65536))
        return {**said, "code": response.status} if isinstance(said, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
