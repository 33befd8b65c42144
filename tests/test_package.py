"""The wheel: what it depends on, what it contains, and what works without the packages of the study."""

import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bbnet

ROOT = Path(__file__).parents[1]
# Modules of the names that it is given are not found, as if they were not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in sys.argv[1].split(",") else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
"""
TRAIN_AND_EXPORT = """
import bbnet, torch

for name in bbnet.__all__:
    getattr(bbnet, name)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
sparsifier = bbnet.sparsify(model, optimizer, bbnet.find_slabs(model), "sp_in", 0.25, total_steps=8, every=1)
for _ in range(8):
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print(float(sparsifier.masks()["0"].float().mean()), bbnet.export(model, remove_units=True)[0].in_features)
"""


def without(names, code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT + code, ",".join(names)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


@pytest.fixture(scope="module")
def requirements(metadata):
    return [Requirement(line) for line in metadata.get_all("Requires-Dist")]


@pytest.fixture(scope="module")
def modules_of_the_study(requirements):
    """The names by which the packages of the extra `study` are imported."""
    packages = {canonicalize_name(each.name) for each in requirements if str(each.marker) == 'extra == "study"'}
    return [
        module
        for module, providers in packages_distributions().items()
        if packages & set(map(canonicalize_name, providers))
    ]


def test_the_core_depends_on_three_packages_and_on_no_newest_version(metadata, requirements):
    core = {each.name: each.specifier for each in requirements if each.marker is None}
    assert set(core) == {"numpy", "pydantic", "torch"}
    assert {bound.operator for specifier in core.values() for bound in specifier} == {">="}
    assert str(core["torch"]) == ">=2.6"
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_study_is_an_extra_whose_pins_are_in_the_lock_alone(requirements):
    assert not [str(each) for each in requirements if "==" in str(each.specifier)]
    locked = set(re.findall(r"^torch\w*==\S+", (ROOT / "envs/requirements.lock.txt").read_text(), re.MULTILINE))
    assert locked == {"torch==2.11.0", "torchaudio==2.11.0", "torchvision==0.26.0"}
    (torch,) = re.findall(r"^torch==\S+", (ROOT / "envs/clients.lock.txt").read_text(), re.MULTILINE)
    assert torch in locked


def test_its_version_is_that_of_the_package_and_of_the_citation(metadata):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert metadata["Version"] == bbnet.__version__ == cited
    assert "__version__" in dir(bbnet)


def test_it_contains_the_package_alone_and_says_that_it_is_typed(wheel):
    assert "bbnet/py.typed" in wheel.namelist()
    assert {name.split("/")[0] for name in wheel.namelist()} == {"bbnet", f"bbnet-{bbnet.__version__}.dist-info"}


def test_the_core_works_without_the_packages_of_the_study(modules_of_the_study):
    assert {"pandas", "scipy", "snakemake", "torchvision", "yaml"} <= {*modules_of_the_study}
    done = without(modules_of_the_study, TRAIN_AND_EXPORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.25 16\n"


def test_the_command_without_the_packages_of_the_study_says_so_in_one_line(modules_of_the_study):
    done = without(modules_of_the_study, "from bbnet.cli import main; main(['plan'])")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        r"error: the command needs the packages of the study, the extra \"study\" of bbnet \(no module named '\w+'\)\n",
        done.stderr,
    )


def test_a_module_of_bbnet_that_is_missing_is_no_missing_package():
    done = without(["bbnet.study.config"], "from bbnet.cli import main; main(['plan'])")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "No module named 'bbnet.study.config'" in done.stderr
