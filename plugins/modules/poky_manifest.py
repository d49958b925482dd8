"""Record what a directory holds, or check that it still holds exactly that.

The manifest covers every file and link below the directory except Python's byte code, which the
interpreter may write at any time, and itself.
"""

import hashlib
import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

NAME = "MANIFEST.json"
UNLISTED = {NAME, "UNFINISHED"}


def survey(directory: Path) -> dict[str, str]:
    """{relative name: SHA-256 of the file, or where the link leads}."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if "__pycache__" in path.parts or name in UNLISTED:
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(recorded: dict[str, str], found: dict[str, str]) -> list[str]:
    """What a manifest and a directory disagree about, one phrase each."""
    missing = [f"{name} is missing" for name in sorted(recorded.keys() - found.keys())]
    extra = [f"{name} was added" for name in sorted(found.keys() - recorded.keys())]
    common = sorted(recorded.keys() & found.keys())
    return missing + extra + [f"{name} differs" for name in common if recorded[name] != found[name]]


def main() -> None:
    """Write the manifest of a directory, or fail unless the directory matches it."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["recorded", "intact"], "required": True},
        },
        supports_check_mode=True,
    )
    directory = Path(module.params["path"])
    found = survey(directory)
    file = directory / NAME
    try:
        recorded = json.loads(file.read_text()) if file.exists() else {}
    except ValueError:
        recorded = {}
    if module.params["state"] == "recorded":
        if recorded != found and not module.check_mode:
            file.write_text(json.dumps(found, indent=1) + "\n")
        module.exit_json(changed=recorded != found)
    if not file.exists():
        module.fail_json(msg=f"{directory} has no {NAME}: it was never staged to the end.")
    wrong = differences(recorded, found)
    if wrong:
        module.fail_json(msg=f"{directory} is not what was staged: {'; '.join(wrong[:5])}.")
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
