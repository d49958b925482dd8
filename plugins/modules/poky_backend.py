"""Drain instances at the Varnish of this host, put them back, or say how Varnish sees them.

Drained is Varnish's administrative state ``sick``: no new request is sent there, running ones go
on. It lives in the loaded VCL, so loading another one forgets it.
"""

import json
import subprocess
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class VarnishError(Exception):
    """Varnish refused, or does not answer."""


def varnishadm(*command: str) -> str:
    """The answer of Varnish's command line."""
    done = subprocess.run(["varnishadm", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise VarnishError(
            f"varnishadm {' '.join(command)}: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def read_backends(listed: str) -> dict[str, dict[str, bool]]:
    """``backend.list -j`` as {name: {"drained": bool, "healthy": bool}}, without the VCL's name."""
    backends = {}
    for full_name, said in json.loads(listed)[-1].items():
        admin = said["admin_health"]
        probe = said["probe_message"]
        probed = str(probe[-1] if isinstance(probe, list) else probe)
        backends[full_name.split(".", 1)[-1]] = {
            "drained": admin == "sick",
            "healthy": admin == "healthy" or (admin != "sick" and probed in ("healthy", "good")),
        }
    return backends


def list_backends() -> dict[str, dict[str, bool]]:
    """The backends of the active VCL."""
    return read_backends(varnishadm("backend.list", "-j"))


def drain(module: Any, names: list[str], peers: list[str], min_healthy: int) -> bool:
    """Drain; refuse if fewer than ``min_healthy`` of the others would be left to serve."""
    before = list_backends()
    serving = [name for name in peers if name not in names and before[name]["healthy"]]
    todo = [name for name in names if not before[name]["drained"]]
    if any(before[name]["healthy"] for name in todo) and len(serving) < min_healthy:
        module.fail_json(
            msg=f"Draining {', '.join(todo)} would leave {len(serving)} healthy instances, fewer "
            f"than poky_min_healthy ({min_healthy}). Cure the others first, or accept a gap with "
            "-e poky_min_healthy=0.",
            backends=before,
        )
    for name in todo if not module.check_mode else []:
        varnishadm("backend.set_health", name, "sick")
    return bool(todo)


def restore(module: Any, names: list[str], timeout: float) -> bool:
    """Hand health back to the probes; wait until they call all healthy, unless ``timeout`` is 0."""
    before = list_backends()
    todo = [name for name in names if before[name]["drained"]]
    if module.check_mode:
        return bool(todo)
    for name in todo:
        varnishadm("backend.set_health", name, "auto")
    if not timeout:
        return bool(todo)
    deadline = time.monotonic() + timeout
    while sick := [
        name for name, seen in list_backends().items() if name in names and not seen["healthy"]
    ]:
        if time.monotonic() > deadline:
            module.fail_json(
                msg=f"Varnish does not call {', '.join(sick)} healthy within {timeout:g} s: can it "
                "reach the instance (poky_listen, firewall)?"
            )
        time.sleep(0.2)
    return bool(todo)


def main() -> None:
    """Bring the named backends to a state, or only list all of them."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["observed", "drained", "in_service"],
                "required": True,
            },
            "names": {"type": "list", "elements": "str", "default": []},
            "peers": {"type": "list", "elements": "str", "default": []},
            "min_healthy": {"type": "int", "default": 0},
            "timeout": {"type": "float", "default": 30},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        known = list_backends()
        strangers = [name for name in given["names"] if name not in known]
        if strangers:
            module.fail_json(
                msg=f"Varnish has no backend {', '.join(strangers)}; it has {', '.join(known)}. "
                "Is the VCL on disk the one that is loaded?"
            )
        changed = False
        if given["state"] == "drained":
            peers = [name for name in given["peers"] if name in known]
            changed = drain(module, given["names"], peers, given["min_healthy"])
        elif given["state"] == "in_service":
            changed = restore(module, given["names"], given["timeout"])
        module.exit_json(changed=changed, backends=list_backends())
    except (VarnishError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
