"""The knob `live`: runs are watched, none is run again, and none has other bits."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# One worker runs the micro study for all tests.
pytestmark = pytest.mark.xdist_group("workflow")

RUN = "change/tiny/sp_in/b0.50/s0"
WARM_UP = "change/tiny/s0"


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_another_way_of_watching_plans_nothing(finished, kind):
    assert finished.planned("--config", f"live={kind}") == {}


def test_an_unknown_way_of_watching_is_refused_before_any_job(finished):
    result = finished.snakemake("--config", "live=mlflow")
    assert result.returncode != 0
    assert "live: input should be 'none', 'tensorboard' or 'wandb', found 'mlflow'" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.thorough
def test_watched_jobs_show_their_history_and_leave_the_same_bytes(project, finished):
    results, alone = project.root / "results/micro", finished.root / "results/micro"
    targets = [f"results/micro/warm_up/{WARM_UP}/checkpoint.pt", f"results/micro/runs/{RUN}/model.safetensors"]
    result = project.snakemake("--force", *targets, "--config", "live=tensorboard")
    assert result.returncode == 0, result.stdout[-5000:]
    for name, folder in ((RUN, f"runs/{RUN}"), (f"warm_up/{WARM_UP}", f"warm_up/{WARM_UP}")):
        history = pd.read_csv(results / folder / "history.csv")
        shown = EventAccumulator(str(results / "live/tensorboard" / name)).Reload()
        columns = set(history.select_dtypes("number")) - {"step"}
        assert set(shown.Tags()["scalars"]) == columns
        for column in columns:
            points = [(event.step, event.value) for event in shown.Scalars(column)]
            assert points == list(zip(history["step"], history[column].astype(np.float32), strict=True))
        assert (results / folder / "history.csv").read_bytes() == (alone / folder / "history.csv").read_bytes()
    for file in ("model.safetensors", "refreshes.csv"):
        assert (results / "runs" / RUN / file).read_bytes() == (alone / "runs" / RUN / file).read_bytes()
    masks, same = (load_file(folder / "runs" / RUN / "masks.safetensors") for folder in (results, alone))
    assert masks.keys() == same.keys()
    assert all(np.array_equal(masks[name], same[name]) for name in masks)
    assert not (alone / "live").exists()
