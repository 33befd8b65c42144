"""Where a training that is stopped goes on: its state on disk, kept up while it runs."""

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
State = Callable[[], Mapping[str, Any] | None]  # None where the loss is no longer finite


class Stopped(SystemExit):
    """Ends the process after a signal asked for it, with the exit status that shells give to that signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Resume:
    """Of a training that goes through: nothing to go on from, nothing left behind."""

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What the training goes on from, if anything."""
        return None

    def after_step(self, state: State) -> None:
        """Called after each step; `state` is made only where it is needed."""

    def after_epoch(self, state: State) -> None:
        """Called after each epoch."""


GOES_THROUGH = Resume()


class StateFile(Resume):
    """The state of a training, saved after every epoch and every so many minutes, and when the process is told to stop.

    Within it SIGTERM, SIGUSR1, SIGINT and SIGHUP end the training after the step or the scoring of dev under way, its
    state saved. Signals that follow change nothing (Ctrl-C reaches a job twice: from the terminal, and as SIGTERM from
    Snakemake), but for a SIGINT, which ends it at once.

    Args:
        path: of the file.
        fingerprint: of all that the training is made of; a state with another one is not taken.
        minutes: between two saves at the most, but for the length of a step.

    Attributes:
        interruptions: how often the training has gone on from here.
    """

    def __init__(self, path: Path, fingerprint: str, minutes: float) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.minutes = minutes
        self.interruptions = 0
        self._stop: int | None = None
        self._earlier_seconds = 0.0
        self._began = self._saved = time.monotonic()

    @classmethod
    def as_configured(cls, path: Path, device: torch.device, *made_of: str) -> "StateFile":
        """Of a training on `device`; as often as the knob `checkpoint_minutes` says, which the Snakefile hands on.

        Another kind of device or version of torch could not go on as if nothing had happened.
        """
        minutes = float(os.environ.get("BBNET_CHECKPOINT_MINUTES", "10"))
        return cls(path, " ".join([*made_of, device.type, torch.__version__]), minutes)

    @property
    def seconds(self) -> float:
        """Time that the training took so far, all its parts together."""
        return self._earlier_seconds + time.monotonic() - self._began

    def __enter__(self) -> "StateFile":
        # What is ignored stays so: under nohup, SIGHUP.
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._ask_to_stop) for number in heeded}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:  # after the last epoch, whose state is saved
            self._end_if_asked()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = self._stop or number
        signal.signal(signal.SIGINT, self._handlers.get(signal.SIGINT, signal.SIG_IGN))

    def _end_if_asked(self) -> None:
        if self._stop is not None:
            logger.warning("stopped by %s; the same command goes on from here", signal.Signals(self._stop).name)
            raise Stopped(self._stop)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What was saved last, if this training may go on from it."""
        if not self.path.exists():
            return None
        try:
            state = load_state(self.path, device)
        except (ValueError, OSError) as error:
            logger.warning("%s; training starts anew", error)
            return None
        if not isinstance(state, dict) or not {"fingerprint", "interruptions", "seconds"} <= set(state):
            logger.warning("%s: not the state of a training; training starts anew", self.path)
            return None
        if state.pop("fingerprint") != self.fingerprint:
            logger.info("%s: is of another configuration, code, data or device; training starts anew", self.path)
            return None
        self.interruptions = state.pop("interruptions") + 1
        self._earlier_seconds = state.pop("seconds")
        return state

    def after_step(self, state: State) -> None:
        """Saves where it is time; where the process was told to stop, saves and raises Stopped."""
        if self._stop is not None or time.monotonic() - self._saved >= 60 * self.minutes:
            self._save(state)
            self._end_if_asked()

    def after_epoch(self, state: State) -> None:
        """Saves; raises Stopped where the process was told to stop."""
        self._save(state)
        self._end_if_asked()

    def _save(self, state: State) -> None:
        self._saved = time.monotonic()
        current = state()
        if current is None:
            return
        own = {"fingerprint": self.fingerprint, "interruptions": self.interruptions, "seconds": self.seconds}
        try:
            save_state(self.path, {**current, **own})
        except OSError as error:
            # The run may still end well, and what was saved before is still there.
            logger.warning("%s: could not be saved (%s); training goes on", self.path, error.strerror)

    def discard(self) -> None:
        """The training is done, and its results are on disk."""
        self.path.unlink(missing_ok=True)
