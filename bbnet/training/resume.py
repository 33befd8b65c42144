"""Where a training that is stopped goes on: its state on disk, kept up while it runs."""

import logging
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bbnet.training.checkpoint import load_state, save_state

logger = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
State = Callable[[], Mapping[str, Any] | None]  # None if nothing should go on from here


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

    Within it SIGTERM, SIGUSR1 and SIGINT end the training after the step under way, its state saved. Others that follow
    change nothing (Ctrl-C reaches a job twice: from the terminal, and as SIGTERM from Snakemake), but for a second
    SIGINT, which ends it at once.

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

    @property
    def seconds(self) -> float:
        """Time that the training took so far, all its parts together."""
        return self._earlier_seconds + time.monotonic() - self._began

    def __enter__(self) -> "StateFile":
        self._handlers = {number: signal.signal(number, self._ask_to_stop) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = self._stop or number
        signal.signal(signal.SIGINT, self._handlers[signal.SIGINT])

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What was saved last, if this training may go on from it."""
        if not self.path.exists():
            return None
        try:
            state = load_state(self.path, device)
        except (ValueError, OSError) as error:
            logger.warning("%s; training starts anew", error)
            return None
        if state.pop("fingerprint", None) != self.fingerprint:
            logger.info("%s: is of another configuration, code or warm start; training starts anew", self.path)
            return None
        self.interruptions = state.pop("interruptions") + 1
        self._earlier_seconds = state.pop("seconds")
        return state

    def after_step(self, state: State) -> None:
        """Raises Stopped if the process was told to stop."""
        if self._stop is not None or time.monotonic() - self._saved >= 60 * self.minutes:
            self.after_epoch(state)

    def after_epoch(self, state: State) -> None:
        """Raises Stopped if the process was told to stop."""
        self._saved = time.monotonic()
        current = state()
        try:
            if current is not None:
                own = {"fingerprint": self.fingerprint, "interruptions": self.interruptions, "seconds": self.seconds}
                save_state(self.path, {**current, **own})
        except OSError as error:
            # The run may still end well, and what was saved before is still there.
            logger.warning("%s: could not be saved (%s); training goes on", self.path, error.strerror)
        if self._stop is not None:
            logger.warning("stopped by %s; the same command goes on from here", signal.Signals(self._stop).name)
            raise Stopped(self._stop)

    def discard(self) -> None:
        """The training is done, and its results are on disk."""
        self.path.unlink(missing_ok=True)
