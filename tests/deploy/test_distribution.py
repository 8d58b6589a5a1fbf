"""What the source distribution brings, and how the pages of deploy/ have the program installed."""

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.conftest import Require
from tests.deploy.recipes import DEPLOY, ROOT, files_of

PAGES = sorted(DEPLOY.rglob("*.md"))


def test_the_source_distribution_brings_everything_in_deploy(
    require: Require, tmp_path: Path
) -> None:
    require(importlib.util.find_spec("hatchling"), "no hatchling here: pip install hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist"]
    subprocess.run([*command, "--directory", str(tmp_path)], cwd=ROOT, check=True)
    (made,) = tmp_path.iterdir()
    with tarfile.open(made) as archive:
        brought = {name.split("/", 1)[1] for name in archive.getnames()}
    wanted = {str(file.relative_to(ROOT)) for file in files_of(DEPLOY)}
    assert wanted | {".dockerignore", "pyproject.toml", "README.md", "LICENSE"} <= brought


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DEPLOY)))
def test_the_program_is_installed_from_a_file_and_not_by_a_name(page: Path) -> None:
    """What an index has under this name can be a stranger's."""
    installed = re.findall(r"pip install ([^`\n&|]+)", page.read_text(encoding="utf-8"))
    by_name = [words for words in installed if re.search(r"(^| )manychar\b(?!-\d)", words)]
    assert by_name == []


def test_the_recipes_name_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        found
        for file in files_of(DEPLOY)
        for found in re.findall(
            r"(?:manychar:|manychar-|newTag: )(\d+\.\d+\.\d+)", file.read_text(encoding="utf-8")
        )
    }
    assert named == {version["version"]}
