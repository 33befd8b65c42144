"""The one name of a file or folder whose path may be written in many ways."""

import os
from pathlib import Path


def one_name(path: str) -> str:
    """Returns the one name of a path, because Snakemake and the keys of data know files and folders by their names.

    `~` and variables are expanded, where they are known. What is below the current folder has a relative name, all else
    an absolute one. Symbolic links keep their names, as nodes of a cluster may resolve them differently.
    """
    expanded = os.path.expandvars(os.path.expanduser(path))
    # pathlib keeps two slashes at the beginning, which POSIX lets a system interpret; Linux takes them for one.
    full = Path(f"/{expanded.lstrip('/')}" if expanded.startswith("/") else expanded)
    # Only the file system knows where .. behind a symbolic link leads.
    full = full.resolve() if ".." in full.parts else full.absolute()
    above = (parent for parent in (full, *full.parents) if os.path.exists(parent) and os.path.samefile(parent, "."))
    here = next(above, None)
    return str(full if here is None else full.relative_to(here))
