"""Watching runs while they train: each row of a history, mirrored to TensorBoard or to Weights & Biases.

Watching never costs a run: whatever fails here is one warning in the log, and training goes on unwatched.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)
WANDB_SECONDS = 60


class Writer(Protocol):
    """What a mirror of a history provides; its package is imported when it is made, no earlier."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None: ...

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files in `folder/tensorboard/{name}`; a run that is trained again replaces its curves."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard" / name, purge_step=0)
        logger.info("live: tensorboard --logdir %s", folder / "tensorboard")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for column, value in scalars.items():
            self._writer.add_scalar(column, value, step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of project bbnet in `folder/wandb`, uploaded as it grows where it is online."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=WANDB_SECONDS,
            finish_timeout=WANDB_SECONDS,
            finish_timeout_raises=True,
        )
        wandb.setup(settings)
        # Without a key wandb would ask for one, and the run would wait for an answer.
        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self._run = wandb.init(project="bbnet", name=name, config=dict(config), dir=folder, mode=mode)
        logger.info("live: %s", self._run.url or f"offline, wandb sync {Path(self._run.dir).parent}")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


WRITERS: dict[str, type[Writer]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Live:
    """Hands the numbers of each row that it is called with to a writer, for as long as that works; never raises.

    Args:
        kind: "none" or one of `WRITERS`.
        folder: of the study; the writer makes its own inside.
        name: of the run, `task/model/method/budget/seed`.
        config: the run's, for writers that keep it.
    """

    def __init__(self, kind: str, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self._writer: Writer | None = None
        if kind != "none":
            with self._one_warning_at_most():
                self._writer = WRITERS[kind](folder, name, config)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Every numeric column of a history's row, at the optimiser step at which its epoch ended."""
        if self._writer is not None:
            numbers = {column: value for column, value in row.items() if isinstance(value, int | float)}
            with self._one_warning_at_most():
                self._writer.write(numbers.pop("step"), numbers)

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._writer is not None:
            with self._one_warning_at_most():
                self._writer.close(failed=kind is not None)

    @contextmanager
    def _one_warning_at_most(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer = None
            logger.warning("live: %s; the run goes on unwatched", _why(error))


def live_as_configured(name: str, config: Mapping[str, Any]) -> Live:
    """As the knob `live` says, which the Snakefile hands on to jobs in their environment."""
    return Live(os.environ.get("BBNET_LIVE", "none"), Path(os.environ.get("BBNET_LIVE_DIR", "live")), name, config)


def _why(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in WRITERS:
        return f"{error.name} is not installed (pip install 'bbnet[{error.name}]')"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
