"""Wait until an instance is idle (nothing in flight) or ready (serves a release in good health).

``idle`` needs two observations in a row with a pause between them: a request may be between
"backend chosen" and "sent". An instance that does not answer at all has nothing to wait for.
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.poky_http import read_status

PAUSE = 0.3


def what_is_missing(state: str, release: str | None, status: dict[str, Any] | None) -> str:
    """Why an instance is not yet in a state, in words; "" if it is."""
    if state == "idle":
        busy = status.get("inflight", 1) if status else 0
        return f"{busy} requests are in flight" if busy else ""
    if status is None:
        return "it does not answer /status"
    if status.get("release") != release:
        return f"it names release {status.get('release')!r}, not {release!r}"
    for part in ("database", "schema"):
        if status.get(part) != "ok":
            return f"it says {part}: {status.get(part)}"
    return "" if status["code"] == 200 else f"/status answers {status['code']}"


def main() -> None:
    """Poll until the state was seen twice in a row or the time is over."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["idle", "ready"], "required": True},
            "listen": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "timeout": {"type": "float", "required": True},
            "release": {"type": "str"},
        },
        required_if=[("state", "ready", ["release"])],
    )
    given = module.params
    deadline = time.monotonic() + given["timeout"]
    seen = 0
    while True:
        status = read_status(given["listen"], given["port"])
        missing = what_is_missing(given["state"], given["release"], status)
        seen = 0 if missing else seen + 1
        if seen == 2:
            module.exit_json(changed=False, status=status)
        if missing and time.monotonic() > deadline:
            module.fail_json(
                msg=f"Port {given['port']} is not {given['state']} after "
                f"{given['timeout']:g} s: {missing}.",
                status=status,
            )
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
