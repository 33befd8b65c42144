"""The DAG is parsed at every call and in every job, and figures come from the summary alone: neither imports torch."""

import subprocess
import sys

import pytest

REPORT = """
import importlib, pkgutil, sys
names = sys.argv[1:]
for package in [name for name in names if name.endswith(".*")]:
    names.remove(package)
    home = importlib.import_module(package[:-2])
    names += [f"{package[:-2]}.{module.name}" for module in pkgutil.iter_modules(home.__path__)]
for name in names:
    importlib.import_module(name)
    assert "torch" not in sys.modules, f"{name} imports torch"
print(len(names))
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("names", "at_least"),
    [
        (["bbnet"], 1),
        (["bbnet.study.config", "bbnet.study.recipe", "bbnet.study.*"], 6),
        (["bbnet.analysis.*", "bbnet.plots.*"], 6),
        (["bbnet.cli.*", "bbnet.binary.packed_file"], 8),
        (["bbnet.tasks.task", "bbnet.tasks.settings", "bbnet.tasks.change.settings"], 3),
        (["bbnet.tasks.change.metrics", "bbnet.tasks.change.panels"], 2),
        (["bbnet.models.settings.*", "bbnet.tasks.classification.settings"], 3),
        ([f"bbnet.tasks.classification.{name}" for name in ("metrics", "panels", "buckets")], 3),
        ([f"bbnet.tasks.logic.{name}" for name in ("metrics", "scaling", "settings")], 3),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_it_is_imported_without_torch(names, at_least):
    assert int(python(REPORT, *names)) >= at_least


def test_the_library_is_reachable_from_the_package():
    code = "import bbnet; print(bbnet.sparsify.__module__, *(getattr(bbnet, name).__name__ for name in bbnet.__all__))"
    home, *names = python(code).split()
    assert home == "bbnet.sparsity.sparsifier"
    assert {"sparsify", "Slab"} <= set(names)


def test_an_unknown_name_is_refused_as_usual():
    code = "import bbnet\ntry: bbnet.sparsfy\nexcept AttributeError as error: print(error)"
    assert python(code) == "module 'bbnet' has no attribute 'sparsfy'"
