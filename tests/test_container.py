"""The container recipe, as far as it can be read without an engine: it builds from the lock, and runs the rules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bbnet.study.workflow import open_workflow

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "envs" / "bbnet.def"
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def sections() -> dict[str, list[str]]:
    """Lines by section of the recipe; the header's under ""."""
    found, name = {"": []}, ""
    for line in RECIPE.read_text().splitlines():
        if line.startswith("%"):
            name = line.strip()
            assert name not in found, f"{name} stands twice"
            found[name] = []
        elif line.strip() and not line.strip().startswith("#"):
            found[name].append(line.strip())
    return found


def test_it_has_the_sections_that_a_build_needs_and_no_others(sections):
    assert set(sections) == {"", "%files", "%post", "%environment"}
    assert all(sections.values())


def test_its_base_is_a_python_that_the_study_supports(sections):
    header = dict(line.split(": ", 1) for line in sections[""])
    assert header["Bootstrap"] == "docker"
    version = tuple(map(int, re.fullmatch(r"python:(\d+)\.(\d+)-slim", header["From"]).groups()))
    (bounds,) = re.findall(r"\((\d+), (\d+)\) <= sys.version_info < \((\d+), (\d+)\)", MAKEFILE)
    lowest, highest = (tuple(map(int, pair)) for pair in (bounds[:2], bounds[2:]))
    assert (lowest, highest) == ((3, 11), (3, 13))
    assert lowest <= version < highest


def test_it_copies_what_the_repository_tracks_to_where_it_installs_from(sections):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    installed = "\n".join(sections["%post"])
    for line in sections["%files"]:
        source, target = line.split()
        assert any(file == source or file.startswith(f"{source}/") for file in tracked), source
        assert target == f"/opt/bbnet/{Path(source).name}"
    targets = [line.split()[1] for line in sections["%files"]]
    assert "/opt/bbnet/requirements.lock.txt" in targets
    assert "--require-hashes -r /opt/bbnet/requirements.lock.txt" in installed
    # The package needs these to build.
    assert {"/opt/bbnet/pyproject.toml", "/opt/bbnet/README.md", "/opt/bbnet/LICENSE", "/opt/bbnet/bbnet"} <= {*targets}


def test_it_installs_with_the_uv_of_the_makefile_and_names_no_index(sections):
    (version,) = re.findall(r"^UV_VERSION := (.+)$", MAKEFILE, re.MULTILINE)
    assert f"uv=={version}" in sections["%post"][0]
    assert "://" not in RECIPE.read_text()


@pytest.mark.parametrize("section", ["%post", "%environment"])
def test_its_scripts_are_shell(sections, section):
    script = "\n".join(sections[section])
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_workflow_uses_the_image_that_the_recipe_says_how_to_build():
    build = re.search(r"apptainer build (\S+) (\S+),", RECIPE.read_text())
    assert build.group(2) == "envs/bbnet.def"
    assert f'container: "{build.group(1)}"' in (ROOT / "Snakefile").read_text()


@pytest.mark.parametrize("variable", ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"])
def test_jobs_in_a_container_take_its_python_and_others_this_one(tmp_path, monkeypatch, variable):
    """Runs the prefix of every job in a shell whose environment is that of a container, and in one that is not."""
    monkeypatch.chdir(ROOT)
    prefix = open_workflow({"study": "smoke", "data_dir": str(tmp_path), "results_dir": str(tmp_path)}).shell_prefix()
    command = prefix.format() + "echo $PATH; echo $BBNET_LIVE $BBNET_PARENT"
    here = str(Path(sys.executable).parent)
    outside, inside = (
        subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"} | told
        ).stdout.splitlines()
        for told in ({}, {variable: "/image.sif"})
    )
    assert outside[0] == f"{here}:/usr/bin:/bin"
    assert inside[0] == "/usr/bin:/bin"
    assert outside[1].split()[0] == inside[1].split()[0] == "none"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apptainer") is None, reason="no container engine here: the recipe is only read")
def test_it_builds(tmp_path):
    subprocess.run(["apptainer", "build", tmp_path / "bbnet.sif", RECIPE], cwd=ROOT, check=True)
