"""The controller's part of the deploy lock: it says who is asking, and whether the holder lives.

Rules, in this order. A holder that recorded its failure gives way. A holder on this controller
gives way once its process is gone. A holder on another controller cannot be judged from here: it
keeps the lock until playbooks/unlock.yml breaks it by name.
"""

import getpass
import os
import socket
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

Holder = dict[str, Any]


def started(pid: int) -> str:
    """When a process of this machine started, in ticks since boot; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def controller() -> Holder:
    """Where a pid means the same process: on one machine, in one boot and numbering."""
    namespace = Path("/proc/self/ns/pid")
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "pids": str(namespace.readlink()) if namespace.exists() else "",
    }


def this_run() -> Holder:
    """The ansible-playbook that asks: the parent of the worker in which actions run."""
    pid = os.getppid()
    token = f"{socket.gethostname()}:{pid}:{started(pid)}"
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    return {
        "token": token,
        "by": who,
        "controller": controller(),
        "pid": pid,
        "started": started(pid),
    }


def gives_way(holder: Holder, here: Holder) -> str:
    """Why the holder may be replaced, in words; "" if it may not."""
    if holder.get("failed"):
        return "it failed"
    there = holder.get("controller", {})
    if there.get("host") != here["host"]:
        return ""
    if there != here:
        return "its controller was restarted"
    return "" if started(holder["pid"]) == holder["started"] else "its process is gone"


def describe(holder: Holder) -> str:
    """The holder in words."""
    return (
        f"{holder['by']} since {holder.get('since')}: {holder['what']}, step “{holder['step']}”, "
        f"last seen {holder.get('seen')}"
    )


class ActionModule(ActionBase):  # type: ignore[misc]
    """Adds the asking run's identity to the arguments and takes over from the dead."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the module; for ``held``, once more if the holder gives way."""
        super().run(tmp, task_vars)
        given = dict(self._task.args)
        holder = {**this_run(), "what": given.pop("what", ""), "step": given.pop("step", "start")}
        if given["state"] == "broken":
            return self._break(given, task_vars)
        result = self._ask({**given, "holder": holder}, task_vars)
        if given["state"] != "held" or result.get("failed") or result["taken"]:
            return result
        found = result["holder"]
        reason = gives_way(found, controller())
        if reason and not self._task.check_mode:
            taking = {**given, "holder": holder, "break_token": found["token"]}
            result = self._ask(taking, task_vars)
            if result.get("taken"):
                note = f"Took the deploy lock over from {describe(found)}; {reason}."
                return {**result, "taken_over": found, "warnings": [note]}
            found = result.get("holder") or found
        refusal = (
            f"The deploy lock is held by {describe(found)}. Wait for it; if it is dead for "
            f"certain: ansible-playbook playbooks/unlock.yml -e poky_unlock={found['by']}"
        )
        if self._task.check_mode:
            return {**result, "warnings": [] if reason else [refusal]}
        return {**result, "failed": True, "msg": refusal}

    def _ask(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="poky_lock", module_args=arguments, task_vars=task_vars
        )
        return answer

    def _break(self, given: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Break the lock if ``by`` holds it; say who holds it otherwise."""
        by = given.pop("by", "")
        shown = self._ask({**given, "state": "shown"}, task_vars)
        found = shown.get("holder")
        if shown.get("failed") or not found:
            return {**shown, "msg": shown.get("msg", "The deploy lock is free.")}
        if found["by"] != by:
            how = f"To break it: -e poky_unlock={found['by']}"
            wrong = bool(by)
            return {**shown, "failed": wrong, "msg": f"Held by {describe(found)}. {how}"}
        broken = self._ask({**given, "break_token": found["token"]}, task_vars)
        return {**broken, "msg": f"Broken; it was held by {describe(found)}."}
