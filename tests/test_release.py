"""What a release is made of and what refuses it; the subjects of commits; what CI runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "service/poky/__init__.py").read_text())[1]  # type: ignore[index]

Run = subprocess.CompletedProcess[str]

# Git as a newcomer has it, whatever the configuration of the machine.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Ann"), ("EMAIL", "ann@example.org"))
    },
}


def run(*command: str | Path, cwd: Path) -> Run:
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def git(cwd: Path, *words: str) -> str:
    done = run("git", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one commit: of this one's tracked files those that a release looks at."""
    tree = tmp_path_factory.mktemp("pattern") / "checkout"
    done = run(ROOT / ".ci/tracked", tree, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for other in ("docs", "inventories", "playbooks", "roles", "tests"):
        shutil.rmtree(tree / other)
    git(tree, "init", "--quiet", "--initial-branch", "main")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "add: everything")
    return tree


@pytest.fixture
def checkout(pattern: Path, tmp_path: Path) -> Path:
    """A copy of that repository of one test's own."""
    return shutil.copytree(pattern, tmp_path / "checkout", symlinks=True)


# What git tracks.


def test_a_copy_of_what_is_tracked_has_nothing_else(checkout: Path, tmp_path: Path) -> None:
    (checkout / "service/poky/scratch.py").write_text("password = 'x'")
    (checkout / "notes").write_text("for me")
    (checkout / "LICENSE").unlink()
    copy = tmp_path / "copy"
    assert run(".ci/tracked", copy, cwd=checkout).returncode == 0
    copied = {
        str(path.relative_to(copy))
        for path in copy.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    assert copied == set(git(checkout, "ls-files").split()) - {"LICENSE"}
    assert (copy / "service/poky/sql").is_symlink()
    assert os.access(copy / ".ci/run", os.X_OK)


def test_a_copy_goes_to_an_empty_directory_only(checkout: Path, tmp_path: Path) -> None:
    refused = run(".ci/tracked", tmp_path, cwd=checkout)
    assert refused.returncode == 1
    assert "is not empty" in refused.stderr


def test_what_is_no_checkout_says_so(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".git").rename(tmp_path / "elsewhere")
    refused = run(".ci/tracked", tmp_path / "copy", cwd=checkout)
    assert refused.returncode == 1
    assert "is not a checkout" in refused.stderr


# Subjects of commits.


@pytest.mark.parametrize(
    "subject",
    [
        "add: a header that says how long a value lives",
        "fix: " + "x" * 67,
        "docs: " + "ü" * 66,
        "Merge branch 'x'",
        'Revert "add: a header"',
        "fixup! add: a header",
    ],
)
def test_a_good_subject_passes(tmp_path: Path, subject: str) -> None:
    message = tmp_path / "message"
    message.write_text(f"\n# a comment of git\n{subject}\n\n{'A long body line. ' * 9}\n")
    done = run(ROOT / ".ci/commit-subjects", message, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        ("fix: " + "x" * 68, "from 73 to 72"),
        ("docs: " + "ü" * 67, "from 73 to 72"),
        ("feat: a header", "one of add, change"),
        ("a header that says how long", "one of add, change"),
        ("fix:without a space", "colon and a space"),
        ("fix: ", "colon and a space"),
        ("Fix: a header", "one of add, change"),
        ("fix: a header.", "full stop"),
        ("", "one of add, change"),
    ],
)
def test_a_bad_subject_is_refused_and_told_why(tmp_path: Path, subject: str, why: str) -> None:
    message = tmp_path / "message"
    message.write_text(f"{subject}\n\nBody.\n")
    done = run(ROOT / ".ci/commit-subjects", message, cwd=ROOT)
    assert done.returncode == 1
    assert why in done.stderr


def test_subjects_are_checked_from_the_last_release_on(checkout: Path) -> None:
    def commit(subject: str) -> str:
        git(checkout, "commit", "--quiet", "--allow-empty", "--message", subject)
        return git(checkout, "rev-parse", "--short", "HEAD").strip()

    assert run(".ci/commit-subjects", cwd=checkout).returncode == 0
    first, second = commit("made it better"), commit("fix it")
    done = run(".ci/commit-subjects", cwd=checkout)
    assert done.returncode == 1
    assert first in done.stderr
    assert second in done.stderr
    git(checkout, "tag", "v1.0.0")
    assert run(".ci/commit-subjects", cwd=checkout).returncode == 0
    assert commit("and again") in run(".ci/commit-subjects", cwd=checkout).stderr


def test_the_hook_refuses_a_commit_and_leaves_a_hook_that_is_there(checkout: Path) -> None:
    assert run(".ci/commit-subjects", "--hook", cwd=checkout).returncode == 0
    refused = run("git", "commit", "--allow-empty", "--message", "better", cwd=checkout)
    assert refused.returncode == 1
    assert "one of add" in refused.stderr
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "add: better words")
    hook = checkout / ".git/hooks/commit-msg"
    hook.write_text("mine")
    assert run(".ci/commit-subjects", "--hook", cwd=checkout).returncode == 0
    assert hook.read_text() == "mine"


# Releases.

SECTION = (
    f"# Changelog\n\n## {VERSION} (2026-12-01)\n\n### Added\n\n- A header.\n\n## 0.0.1\n\n- It.\n"
)


@pytest.fixture
def release(checkout: Path) -> Callable[..., Run]:
    """Ask for a release of a checkout whose changelog reads so."""

    def release(changelog: str, word: str = "check") -> Run:
        (checkout / "CHANGELOG.md").write_text(changelog)
        git(checkout, "add", "--update")
        git(checkout, "commit", "--quiet", "--allow-empty", "--message", "docs: the changelog")
        return run(".ci/release", word, cwd=checkout)

    return release


@pytest.mark.parametrize(
    ("changelog", "why"),
    [
        (SECTION.replace("(2026-12-01)", "(unreleased)"), "Unreleased"),
        (SECTION.replace(f"{VERSION} (2026-12-01)", "Unreleased"), "Unreleased"),
        (SECTION.replace("- A header.\n", ""), "is empty"),
        (SECTION.replace("### Added\n\n- A header.\n", ""), "is empty"),
        (SECTION.replace(VERSION, VERSION + "1"), "make them agree"),
        ("# Changelog\n", "has no section"),
        ("", "has no section"),
    ],
)
def test_a_changelog_that_is_not_ready_is_refused(
    release: Callable[..., Run], checkout: Path, changelog: str, why: str
) -> None:
    for word in ("check", "tag"):
        refused = release(changelog, word)
        assert refused.returncode == 1
        assert why in refused.stderr
    assert git(checkout, "tag") == ""


def test_a_release_is_tagged_with_its_section_once(
    release: Callable[..., Run], checkout: Path
) -> None:
    assert release(SECTION, "check").returncode == 0
    assert git(checkout, "tag") == ""
    assert release(SECTION, "tag").returncode == 0
    assert git(checkout, "tag") == f"v{VERSION}\n"
    told = git(checkout, "tag", "--list", "--format=%(contents)")
    assert "- A header." in told
    assert "- It." not in told
    for word in ("check", "tag"):
        refused = release(SECTION, word)
        assert refused.returncode == 1
        assert f"v{VERSION} exists" in refused.stderr


@pytest.mark.parametrize("change", ["untracked", "modified", "staged"])
def test_a_tree_with_changes_is_not_released(
    release: Callable[..., Run], checkout: Path, change: str
) -> None:
    assert release(SECTION).returncode == 0
    path = checkout / {"untracked": "notes"}.get(change, "README.md")
    path.write_text("x")
    if change == "staged":
        git(checkout, "add", "README.md")
    for word in ("check", "tag"):
        refused = run(".ci/release", word, cwd=checkout)
        assert refused.returncode == 1
        assert path.name in refused.stderr


# What forges and hooks run is what developers run.


def test_the_forge_runs_what_ci_runs() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    assert [step for step in steps if step.get("run") == ".ci/run"]
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_pre_commit_runs_make_lint_and_the_subject() -> None:
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"] for each in configuration["repos"] for hook in each["hooks"]]
    assert entries == ["make lint", ".ci/commit-subjects"]


def test_a_bucket_without_a_name_is_asked_for() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\nbucket: ")[2].partition("\n\n")[0]
    assert recipe.index("make bucket BUCKET=") < recipe.index("$(PLAYBOOK)")


# The collection.

DEPLOY = ROOT / ".venv-deploy" / "bin"
PYTHON = f"cp3{sys.version_info.minor}"

CARRIES = """
- ansible.builtin.import_playbook: poky.poky.given
- hosts: service
  gather_facts: true
  tasks:
    - ansible.builtin.include_role:
        name: poky.poky.poky
        tasks_from: {entry}
    - ansible.builtin.debug:
        var: _poky_build
"""


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the collection was installed, without a network, after it was built for this Python."""
    into, collections = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("collections")
    packages = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    archive = into / f"poky-poky-{VERSION}.tar.gz"
    build = (ROOT / ".ci/collection.py", "--into", into, "--target", f"{PYTHON}-x86_64")
    install = ("collection", "install", "--offline", "--collections-path", collections, archive)
    for command in ((DEPLOY / "python", *build), (DEPLOY / "ansible-galaxy", *install)):
        done = subprocess.run(
            command,
            cwd=into,
            env={**ENVIRONMENT, **packages, "HOME": str(into)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return collections


@pytest.fixture
def play(collections: Path, tmp_path: Path) -> Callable[..., Run]:
    """Run a playbook in a folder that has nothing but an inventory, copied from the collection."""
    collection = collections / "ansible_collections/poky/poky"
    shutil.copytree(collection / "inventories/development", tmp_path / "inventory")
    groups = ("database", "service", "cache", "web")
    (tmp_path / "inventory/hosts.yml").write_text(
        yaml.safe_dump(
            {
                "all": {
                    "hosts": {"here": {"ansible_connection": "local", "machine_image": ""}},
                    "vars": {"ansible_python_interpreter": sys.executable},
                    "children": {group: {"hosts": {"here": None}} for group in groups},
                }
            }
        )
    )

    def play(*words: str) -> Run:
        return subprocess.run(
            [DEPLOY / "ansible-playbook", *words, "-i", "inventory"],
            cwd=tmp_path,
            env={
                **ENVIRONMENT,
                "HOME": str(tmp_path),
                "LC_ALL": "C.UTF-8",
                "ANSIBLE_COLLECTIONS_PATH": str(collections),
                "ANSIBLE_CONFIG": str(collection / "ansible.cfg"),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return play


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml")))
def test_every_playbook_of_the_collection_holds(play: Callable[..., Run], name: str) -> None:
    done = play(f"poky.poky.{name}", "--list-tasks")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"playbooks/{name}.yml" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_collection_deploys_the_release_that_it_carries(
    play: Callable[..., Run], tmp_path: Path
) -> None:
    entry = "release/build" if (ROOT / "roles/poky/tasks/release/build.yml").exists() else "build"
    (tmp_path / "carries.yml").write_text(CARRIES.format(entry=entry))
    done = play("carries.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"id: {re.escape(VERSION)}\+[0-9a-f]{{10}}", done.stdout), done.stdout
    (archive,) = re.findall(r"archive: (\S+release\.tar)", done.stdout)
    with tarfile.open(archive) as wheels:
        names = wheels.getnames()
    assert [name for name in names if name.startswith(f"wheels/poky-{VERSION}-")]
    assert [name for name in names if "psycopg2" in name and PYTHON in name]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_filters_of_the_collection_have_their_full_names(collections: Path) -> None:
    collection = collections / "ansible_collections/poky/poky"
    texts = [path.read_text() for path in collection.glob("roles/**/*.yml")]
    assert any("| poky.poky.poky_targets" in text for text in texts)
    assert not [text for text in texts if "| poky_targets" in text]
