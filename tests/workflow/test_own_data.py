"""Data of the user's own: what is edited is prepared again by the same command, and what is not is left alone."""

import json

import numpy as np
import pytest
from PIL import Image

from bbnet.tasks import task as tasks

# One worker runs all that takes minutes.
pytestmark = [pytest.mark.xdist_group("workflow"), pytest.mark.thorough]


def test_edited_and_removed_pairs_are_seen_and_a_refusal_says_how_to_go_on(empty_project, study, tmp_path):
    project, pairs = empty_project.copy(tmp_path / "project"), tmp_path / "pairs"
    data = study["tasks"]["change"]["data"]
    names = tasks.load("change").fetch(data, pairs)["splits"]["train"]
    study["tasks"]["change"]["data"] = {"pack": "levir_cd", "path": str(pairs), "complete": False}
    project.write_study(study)

    def prepared() -> tuple[np.ndarray, list[str], str]:
        """The labels and names of training, and what the call said."""
        result = project.snakemake("data")
        assert result.returncode == 0, result.stdout
        newest = max((project.root / "data" / "prepared").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        index = json.loads(newest.read_text())["splits"]["train"]
        return np.load(newest.with_suffix("") / "train_labels.npy"), index["images"], result.stdout

    labels, _, said = prepared()
    assert "your own data, in the layout of LEVIR-CD" in said
    assert "academic use only" not in said
    (pairs / "train" / ".DS_Store").write_text("litter")
    assert project.planned("data") == {}

    edited = pairs / "train" / "label" / names[2][-1]
    Image.fromarray((1 - labels[2]) * np.uint8(255)).save(edited)
    again, _, _ = prepared()
    assert (again[2] == 1 - labels[2]).all()
    assert (np.delete(again, 2, axis=0) == np.delete(labels, 2, axis=0)).all()

    for part, name in zip(("A", "B", "label"), names[0], strict=True):
        (pairs / "train" / part / name).unlink()
    fewer, left, _ = prepared()
    assert (fewer == again[1:]).all()
    assert names[0][0] not in left

    Image.new("L", (32, 32)).save(edited, "JPEG")
    refused = project.snakemake("data")
    assert refused.returncode != 0
    assert f"{edited}: is compressed as JPEG" in refused.stdout
    assert "the same command with --forcerun fetch prepare looks at all of it again" in refused.stdout
