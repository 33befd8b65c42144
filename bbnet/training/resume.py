"""Resuming of interrupted trainings from a state on disk, which is saved at intervals."""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bbnet.training.checkpoint import load_state, save_state

logger = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
State = Callable[[], Mapping[str, Any] | None]  # None if the loss is no longer finite


class Stopped(SystemExit):
    """Ends the process after a stop signal, with the exit status that shells use for that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Resume:
    """Base class and default: neither loads nor saves a state."""

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Returns the state to resume from, or None to start from the beginning."""
        return None

    def after_step(self, state: State) -> None:
        """Callback after each step; `state` is a function, called only if its result is needed."""

    def after_epoch(self, state: State) -> None:
        """Callback after each epoch."""


WITHOUT_RESUME = Resume()


class StateFile(Resume):
    """Saves the state of a training to a file after every epoch, every few minutes, and when a signal asks to stop.

    Inside the context, SIGTERM, SIGUSR1, SIGINT and SIGHUP end the training after the current step or scoring of dev,
    with its state saved. Further signals are ignored, because Ctrl-C reaches a job twice (from the terminal, and as
    SIGTERM from Snakemake), except for SIGINT, which ends the process at once.

    Args:
        fingerprint: identifies everything that the training depends on; a state with another one is not loaded.
        minutes: longest time between two saves; the step in progress is finished first.

    Attributes:
        interruptions: number of times the training has been resumed.
    """

    def __init__(self, path: Path, fingerprint: str, minutes: float) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.minutes = minutes
        self.interruptions = 0
        self._stop: int | None = None
        self._previous_seconds = 0.0
        self._began = self._saved = time.monotonic()

    @classmethod
    def as_configured(cls, path: Path, device: torch.device, *made_of: str) -> "StateFile":
        """Returns a state file with the interval of the knob `checkpoint_minutes`, passed as an environment variable.

        The fingerprint includes the kind of device and the version of torch, as another one gives other bits.
        """
        minutes = float(os.environ.get("BBNET_CHECKPOINT_MINUTES", "10"))
        return cls(path, " ".join([*made_of, device.type, torch.__version__]), minutes)

    @property
    def seconds(self) -> float:
        """Training time so far, including that before interruptions."""
        return self._previous_seconds + time.monotonic() - self._began

    def __enter__(self) -> "StateFile":
        # Signals that are ignored stay ignored, such as SIGHUP under nohup.
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._request_stop) for number in heeded}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:  # the state was saved after the last epoch
            self._stop_if_requested()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = self._stop or number
        signal.signal(signal.SIGINT, self._handlers.get(signal.SIGINT, signal.SIG_IGN))

    def _stop_if_requested(self) -> None:
        if self._stop is not None:
            logger.warning("stopped by %s; the same command resumes from here", signal.Signals(self._stop).name)
            raise Stopped(self._stop)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Returns the last saved state, or None if there is none that this training can resume from."""
        if not self.path.exists():
            return None
        try:
            state = load_state(self.path, device)
        except (ValueError, OSError) as error:
            logger.warning("%s; training restarts from the beginning", error)
            return None
        if not isinstance(state, dict) or not {"fingerprint", "interruptions", "seconds"} <= set(state):
            logger.warning("%s: not the state of a training; training restarts from the beginning", self.path)
            return None
        if state.pop("fingerprint") != self.fingerprint:
            logger.info("%s: other configuration, code, data or device; training restarts", self.path)
            return None
        self.interruptions = state.pop("interruptions") + 1
        self._previous_seconds = state.pop("seconds")
        return state

    def after_step(self, state: State) -> None:
        """Saves the state if the interval is over; after a stop signal, saves it and raises Stopped."""
        if self._stop is not None or time.monotonic() - self._saved >= 60 * self.minutes:
            self._save(state)
            self._stop_if_requested()

    def after_epoch(self, state: State) -> None:
        """Saves the state; raises Stopped after a stop signal."""
        self._save(state)
        self._stop_if_requested()

    def _save(self, state: State) -> None:
        self._saved = time.monotonic()
        current = state()
        if current is None:
            return
        own = {"fingerprint": self.fingerprint, "interruptions": self.interruptions, "seconds": self.seconds}
        try:
            save_state(self.path, {**current, **own})
        except OSError as error:
            # The run may still succeed, and the state saved before is still there.
            logger.warning("%s: could not be saved (%s); training continues", self.path, error.strerror)

    def discard(self) -> None:
        """Deletes the file; call it once the results of the training are on disk."""
        self.path.unlink(missing_ok=True)
