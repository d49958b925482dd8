"""Build a release from a checkout: one wheel, the wheels it needs, and a manifest. Controller only.

The id is ``<version>+<revision>``, where the revision is the last commit that touched what a
release is made of: a change of a role or of a document makes no new release. A working tree that
differs from it adds a digest of its content.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
INGREDIENTS = ("pyproject.toml", "README.md", "LICENSE", "requirements.txt", "service", "sql")


class BuildError(Exception):
    """Why there is no release, in a sentence that says what to do."""


def run(*command: str, cwd: Path | None = None) -> str:
    """The output of a command; BuildError with what it said if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise BuildError(f"“{' '.join(map(str, command[:6]))} …” failed:\n{said}")
    return done.stdout


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def identify(source: Path, allow_dirty: bool) -> dict[str, str]:
    """The release that a checkout would make: its id, version and revision.

    A tree with changes that are not committed is refused unless ``allow_dirty``, wherever they
    are: what was deployed must be found again in the history.
    """
    initial = (source / "service/poky/__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"', initial, re.MULTILINE)
    if not found:
        raise BuildError("service/poky/__init__.py names no __version__.")
    version = found[1]
    changes = run("git", "status", "--porcelain", "--untracked-files=all", cwd=source)
    if changes and not allow_dirty:
        raise BuildError(
            "The checkout has changes that are not committed; commit or remove them (only a "
            f"development inventory sets poky_allow_dirty):\n{changes.rstrip()}"
        )
    history = ("git", "log", "-1", "--abbrev=10", "--format=%h", "--", *INGREDIENTS)
    revision = run(*history, cwd=source).strip()
    if not revision:
        raise BuildError(f"{source} has no commit to name a release after.")
    release = f"{version}+{revision}"
    if run("git", "status", "--porcelain", "--untracked-files=all", "--", *INGREDIENTS, cwd=source):
        release += f".dirty.{_digest_of_tree(source)[:8]}"
    return {"id": release, "version": version, "revision": revision}


def _digest_of_tree(source: Path) -> str:
    listed = run(
        "git", "ls-files", "-z", "-co", "--exclude-standard", "--", *INGREDIENTS, cwd=source
    )
    content = hashlib.sha256()
    for name in sorted(set(listed.split("\0")) - {""}):
        path = source / name
        if path.is_symlink():
            content.update(f"{name}\0->{path.readlink()}\0".encode())
        elif path.is_file():
            content.update(f"{name}\0{digest(path)}\0".encode())
    return content.hexdigest()


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of what was built there before; None if it is missing or no longer true."""
    try:
        manifest: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
        true = all(digest(directory / name) == sha for name, sha in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if true else None


def carried(source: Path, destination: Path) -> dict[str, str] | None:
    """The release that an installed collection brings along; None for a checkout."""
    if (source / ".git").exists():
        return None
    for path in sorted(destination.glob("*/manifest.json")):
        if manifest := read_manifest(path.parent):
            return {"id": manifest["release"], **{k: manifest[k] for k in ("version", "revision")}}
    return None


def make_tools(source: Path, directory: Path) -> str:
    """An environment with the build tools of the checkout, pinned by hash; its Python."""
    run(sys.executable, "-m", "venv", str(directory))
    python = str(directory / "bin/python")
    run(python, *INSTALL, "--require-hashes", "-r", str(source / "requirements-build.txt"))
    return python


def build_wheel(python: str, source: Path, directory: Path) -> None:
    """Put the wheel there, and the requirements that pin it and all it needs by hash."""
    wheels = directory / "wheels"
    wheels.mkdir()
    built = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source))
    run(python, *built)
    (wheel,) = wheels.glob("poky-*.whl")
    version = wheel.name.split("-")[1]
    locked = (source / "requirements.txt").read_text()
    pinned = f"poky=={version} --hash=sha256:{digest(wheel)}\n"
    (directory / "requirements.txt").write_text(f"{locked.rstrip()}\n{pinned}")


def download(python: str, source: Path, directory: Path, target: str) -> None:
    """Fetch the locked wheels for one kind of host, such as ``cp311-x86_64``."""
    abi, machine = target.split("-", 1)
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in (28, 17)]
    platforms.append(f"manylinux2014_{machine}")
    run(
        *(python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--require-hashes", "--no-deps", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", f"{abi[2]}.{abi[3:]}"),
        *(f"--abi={tag}" for tag in (abi, "abi3", "none")),
        *(f"--platform={platform}" for platform in platforms),
        *("--dest", str(directory / "wheels"), "-r", str(source / "requirements.txt")),
    )


def build(source: Path, destination: Path, identity: dict[str, str], targets: set[str]) -> Path:
    """Make or complete the release's directory; its manifest is written last."""
    directory = destination / identity["id"]
    manifest = read_manifest(directory)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination) as scratch:
        work = Path(scratch) / "release"
        python = make_tools(source, Path(scratch) / "tools")
        if manifest:
            shutil.copytree(directory, work)
        else:
            work.mkdir()
            build_wheel(python, source, work)
        have = set(manifest["targets"]) if manifest else set()
        for target in sorted(targets - have):
            download(python, source, work, target)
        files = sorted([*work.glob("wheels/*.whl"), work / "requirements.txt"])
        # One file travels faster than many.
        with tarfile.open(work / "release.tar", "w") as archive:
            for path in files:
                archive.add(path, path.relative_to(work))
        files.append(work / "release.tar")
        manifest = {
            "release": identity["id"],
            "version": identity["version"],
            "revision": identity["revision"],
            "targets": sorted(targets | have),
            "files": {str(path.relative_to(work)): digest(path) for path in files},
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(directory, ignore_errors=True)
        work.rename(directory)
    return directory


def main() -> None:
    """Say which release the checkout makes, and make it unless it is there."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "destination": {"type": "path", "required": True},
            "targets": {"type": "list", "elements": "str", "required": True},
            "allow_dirty": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    source, destination = (Path(module.params[name]) for name in ("source", "destination"))
    targets = set(module.params["targets"])
    try:
        brought = carried(source, destination)
        identity = brought or identify(source, module.params["allow_dirty"])
        directory = destination / identity["id"]
        manifest = read_manifest(directory)
        missing = not manifest or not targets <= set(manifest["targets"])
        if missing and brought and manifest:
            raise BuildError(
                f"This collection has wheels for {', '.join(manifest['targets'])}, and some hosts "
                f"have the Python {', '.join(sorted(targets - set(manifest['targets'])))}. Build "
                "it for them (.ci/collection.py --target), or deploy from a checkout."
            )
        if missing and not module.check_mode:
            build(source, destination, identity, targets)
    except (BuildError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=missing, archive=str(directory / "release.tar"), **identity)


if __name__ == "__main__":
    main()
