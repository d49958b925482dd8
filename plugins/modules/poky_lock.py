"""The deploy lock: a directory, made atomically, that says who deploys what and how far it is.

This is the part on the host; ``action_plugins/poky_lock.py`` says who is asking and judges on the
controller whether a holder still lives.
"""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def now() -> str:
    """The time as people and programs read it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(lock: Path) -> dict[str, Any] | None:
    """The holder of the lock; None if it is free, unknown values if it is torn."""
    if not lock.is_dir():
        return None
    try:
        holder: dict[str, Any] = json.loads((lock / "holder.json").read_text())
        return holder
    except (OSError, ValueError):
        return {"token": "", "by": "unknown", "what": "unknown", "step": "unknown"}


def write(lock: Path, holder: dict[str, Any]) -> None:
    """Replace the note about the holder."""
    draft = lock / "holder.json.new"
    draft.write_text(json.dumps({**holder, "seen": now()}, indent=1) + "\n")
    draft.replace(lock / "holder.json")


def take(lock: Path, holder: dict[str, Any]) -> bool:
    """Take the lock; False if somebody was faster."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.mkdir(mode=0o755)
    except FileExistsError:
        return False
    write(lock, holder)
    return True


def remove(lock: Path, token: str) -> bool:
    """Remove the lock if ``token`` holds it: of several who try, one succeeds."""
    found = read(lock)
    if found is None or found["token"] != token:
        return False
    aside = lock.with_name(f"{lock.name}.{os.getpid()}")
    try:
        lock.rename(aside)
    except OSError:
        return False
    shutil.rmtree(aside)
    return True


def main() -> None:
    """Take, mark, release, show or break the lock. Never "changed": it leaves no trace."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {
                "type": "str",
                "choices": ["held", "step", "failed", "released", "shown", "broken"],
                "required": True,
            },
            "holder": {"type": "dict", "default": {}},
            "break_token": {"type": "str", "no_log": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    lock, me, state = Path(given["path"]), given["holder"], given["state"]
    found = read(lock)
    if state == "shown" or module.check_mode:
        module.exit_json(changed=False, taken=found is None, holder=found)
    if given["break_token"] is not None:
        remove(lock, given["break_token"])
    if state == "held":
        mine = found is not None and found["token"] == me["token"]
        taken = mine or take(lock, {**me, "since": now()})
        module.exit_json(changed=False, taken=taken, holder=read(lock))
    if state == "broken":
        module.exit_json(changed=found is not None and read(lock) is None, holder=found)
    if found is None or found["token"] != me["token"]:
        other = f"{found['by']} ({found['what']}) holds it" if found else "it is free"
        module.fail_json(msg=f"The deploy lock was taken from this run: {other}.")
    elif state == "released":
        remove(lock, me["token"])
    elif not found.get("failed"):  # what failed first stays on record while the run tidies up
        write(lock, {**found, "step": me["step"], "failed": state == "failed"})
    module.exit_json(changed=False, taken=True, holder=found)


if __name__ == "__main__":
    main()
