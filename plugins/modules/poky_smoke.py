"""Live through one object's life by way of nginx, Varnish and an instance, and say what was wrong.

Written, read from the service and then from the cache, refused to a writer with an old tag,
changed and read back at once, deleted. The object is the test's own, and it is gone afterwards.
"""

import http.client
import os
import ssl
import time
from collections.abc import Iterator
from email.message import Message
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule


class Wrong(Exception):
    """What the stack did, and what it should have done."""


class Dialogue:
    """Requests for one object over one kept-alive connection."""

    def __init__(self, url: str, path: str, token: str) -> None:
        self.path = path
        self.credentials = {"Authorization": f"Bearer {token}"} if token else {}
        parts = urlsplit(url)
        if parts.scheme == "https":
            # The certificate is for the public name; this is the host itself.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.netloc, timeout=20, context=context
            )
        else:
            self.connection = http.client.HTTPConnection(parts.netloc, timeout=20)

    def ask(
        self, method: str, expected: int, body: bytes | None = None, **headers: str
    ) -> tuple[bytes, Message]:
        """The answer's body and headers; Wrong unless its status is the expected one."""
        try:
            self.connection.request(method, self.path, body, {**self.credentials, **headers})
            response = self.connection.getresponse()
            said = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Wrong(f"{method} {self.path}: {error!r}") from error
        if response.status != expected:
            raise Wrong(
                f"{method} {self.path} answered {response.status}, not {expected}: {said[:200]!r}"
            )
        return said, response.headers

    def read(self, value: bytes) -> str:
        """GET the object, which must have this value; what X-Cache says."""
        said, headers = self.ask("GET", 200)
        if said != value:
            raise Wrong(f"GET {self.path} answered {said[:40]!r} where {value!r} was written.")
        return headers.get("X-Cache", "nothing")


def live(dialogue: Dialogue, cached: bool, patience: float) -> Iterator[str]:
    """The object's life; yields what was seen, one phrase each."""
    first, second = b"first", b"second"
    _, headers = dialogue.ask("PUT", 200, first, **{"Content-Type": "text/plain"})
    old_tag = headers.get("ETag", "")
    if not old_tag:
        raise Wrong("PUT answered without an ETag.")
    seen = dialogue.read(first)
    yield f"a fresh object: {seen}"
    if seen == "HIT":
        raise Wrong("The first GET of a fresh object was a HIT: of what?")
    deadline = time.monotonic() + patience
    while cached and seen != "HIT":
        if time.monotonic() > deadline:
            raise Wrong(f"No GET was a HIT in {patience:g} s, the last one was {seen}.")
        time.sleep(0.1)
        seen = dialogue.read(first)
    yield f"the same again: {seen}"
    dialogue.ask("PUT", 412, second, **{"If-Match": '"0-smoke"'})
    yield "a write with an old tag: 412"
    dialogue.ask("PUT", 200, second, **{"If-Match": old_tag})
    dialogue.read(second)
    yield "a write with the right tag: 200, and read back at once"
    dialogue.ask("DELETE", 200)
    dialogue.ask("GET", 404)
    yield "deleted: 404"


def main() -> None:
    """Run the dialogue; fail with the first thing that was wrong."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "token": {"type": "str", "default": "", "no_log": True},
            "cached": {"type": "bool", "default": True},
            "patience": {"type": "float", "default": 20},
        }
    )
    given = module.params
    path = f"/kv/{given['bucket']}/{os.uname().nodename}-{time.time_ns()}"
    seen = []
    try:
        dialogue = Dialogue(given["url"], path, given["token"])
        for phrase in live(dialogue, given["cached"], given["patience"]):
            seen.append(phrase)
    except Wrong as wrong:
        module.fail_json(msg=f"{wrong} Before that: {'; '.join(seen) or 'nothing'}.")
    module.exit_json(changed=False, seen=seen)


if __name__ == "__main__":
    main()
