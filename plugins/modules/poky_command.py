"""Run a command of Poky with ``--json``: its answer, or the sentence with which it failed.

``answer`` is what it printed. A failure has the ``code`` that the command gives its errors; codes
in ``accept`` are no failures of the task. In a plan the secrets of further databases may not be
there yet: then it goes without them. ``stdin`` is given to it and shown nowhere; of what it
prints, ``changes_by`` names the member that is empty if it changed nothing.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def read_failure(stderr: str) -> dict[str, str]:
    """The ``code`` and ``detail`` of the last line; of a program that gives none, what it said."""
    said = stderr.strip()
    if "No such command" in said:
        return {"code": "no_such_command", "detail": said}  # of an older release
    try:
        last: Any = json.loads(said.splitlines()[-1])
        return {"code": str(last["code"]), "detail": str(last["detail"])}
    except (IndexError, ValueError, KeyError, TypeError):
        return {"code": "", "detail": said}


def is_there(word: str) -> bool:
    """Whether a word of the command can stay: all but credentials of shards that do not exist."""
    match = re.fullmatch(r"--property=LoadCredential=\w+_shards:(.+)", word)
    return match is None or Path(match[1]).exists()


def main() -> None:
    """Run it; fail with its own sentence."""
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str", "required": True},
            "accept": {"type": "list", "elements": "str", "default": []},
            "changes": {"type": "bool", "default": False},
            "changes_by": {"type": "str", "default": ""},
            "stdin": {"type": "str", "no_log": True},
        }
    )
    given = module.params
    argv = [word for word in given["argv"] if is_there(word)]
    try:
        done = subprocess.run(
            argv, input=given["stdin"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        module.fail_json(msg=f"{given['argv'][0]} cannot be run: {error.strerror}.")
    if done.returncode:
        failure = read_failure(done.stderr or done.stdout)
        if failure["code"] in given["accept"]:
            module.exit_json(changed=False, answer=None, code=failure["code"])
        sentence = failure["detail"] or f"{' '.join(given['argv'])}: exit status {done.returncode}"
        module.fail_json(msg=sentence, code=failure["code"], rc=done.returncode)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        module.fail_json(msg=f"This is not JSON: {done.stdout[:200]!r}")
    changed = bool(answer[given["changes_by"]]) if given["changes_by"] else given["changes"]
    module.exit_json(changed=changed, answer=answer, code="")


if __name__ == "__main__":
    main()
