"""Live logging of runs: each row of a training history is also sent to TensorBoard or Weights & Biases.

Live logging never fails a run: an error is logged as one warning, and training continues without live logging.
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
    """Interface of a logging backend. The backend's package is imported only when an instance is created."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None: ...

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Writes event files to `folder/tensorboard/{name}`; training a run again replaces its curves."""

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
    """Writes a run of the W&B project bbnet to `folder/wandb` and, unless offline, uploads it during training."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        timeouts = {"init_timeout": WANDB_SECONDS, "finish_timeout": WANDB_SECONDS, "finish_timeout_raises": True}
        wandb.setup(wandb.Settings(console="off", silent=True, **timeouts))
        # Without an API key wandb would prompt for one and block the run.
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
    """Callback that passes the numbers of each history row to a writer; never raises, and is inactive after an error.

    Args:
        kind: "none" or one of `WRITERS`.
        folder: folder of the study; the writer creates its own folder inside.
        name: name of the run, `task/model/method/budget/seed`.
        config: configuration of the run, for writers that store it.
    """

    def __init__(self, kind: str, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self._writer: Writer | None = None
        if kind != "none":
            with self._disabled_on_error():
                self._writer = WRITERS[kind](folder, name, config)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Writes every numeric column of a history row, at the optimiser step at which its epoch ended."""
        if self._writer is not None:
            numbers = {column: value for column, value in row.items() if isinstance(value, int | float)}
            with self._disabled_on_error():
                self._writer.write(numbers.pop("step"), numbers)

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._writer is not None:
            with self._disabled_on_error():
                self._writer.close(failed=kind is not None)

    @contextmanager
    def _disabled_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer = None
            logger.warning("live: %s; the run continues without live logging", _reason(error))


def live_as_configured(name: str, config: Mapping[str, Any]) -> Live:
    """Returns the live logger set by the knob `live`, which the Snakefile passes to jobs as environment variables."""
    return Live(os.environ.get("BBNET_LIVE", "none"), Path(os.environ.get("BBNET_LIVE_DIR", "live")), name, config)


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in WRITERS:
        return f"{error.name} is not installed (pip install 'bbnet[{error.name}]')"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
