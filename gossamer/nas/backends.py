"""Where the trials of a study run: in this process, beside any number of other ones, or on a Ray cluster."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import Any

from gossamer.core.progress import Quiet
from gossamer.errors import BadInput, first_line, require
from gossamer.nas.study import Lease, Study
from gossamer.nas.trials import TrialRunner, TrialStep

POLL = 1.0  # seconds until results of other processes are looked for again
SILENCE = 30.0  # seconds of waiting, after which a message says for what
CONNECT = 10.0  # seconds for a cluster to answer
CRASHES = 3  # of the process of one trial on Ray, after which the search ends


class Backend(ABC):
    """Does steps of a study and keeps their results in it.

    Args:
        study: whose steps.
        runner: that does them.
        measure: whether this process may measure times: it runs on a quiet machine of the kind that the network is for.
    """

    def __init__(self, study: Study, runner: TrialRunner, *, measure: bool = True) -> None:
        self.study, self.runner, self.measure = study, runner, measure
        self.done = 0
        self._waiting = 0.0

    @abstractmethod
    def advance(self, ready: Sequence[TrialStep]) -> None:
        """Keep at least one result in the study, or wait a little for those of other processes.

        Args:
            ready: what can be done now, the first ones first.
        """

    def close(self) -> None:  # noqa: B027  (this process has nothing to close)
        """Give back what was taken."""

    def allowed(self, step: TrialStep) -> bool:
        """Whether the step may be done by this process."""
        return step.kind != "measure" or self.measure

    def do(self, step: TrialStep, lease: Lease) -> None:
        """Do a step in this process."""
        with lease:
            self.study.put(step.key, self.runner(step))
        self.done += 1
        self._waiting = 0.0

    def wait(self, ready: Sequence[TrialStep]) -> None:
        """Let other processes work, and say so once where it takes long."""
        with self.runner.context.progress.busy("waiting for other workers"):
            self.study.clock.sleep(POLL)
        before, self._waiting = self._waiting, self._waiting + POLL
        if before < SILENCE <= self._waiting:
            measuring = any(not self.allowed(step) for step in ready)
            who = "a worker with --measure, or the search itself" if measuring else "other workers"
            self.runner.context.progress.say(f"waiting for {who}: {', '.join(step.key for step in ready)}")


class ThisProcess(Backend):
    """One step after the other, here. Any number of processes may do the same in one study.

    Args:
        study: whose steps.
        runner: that does them.
        measure: whether this process may measure times.
    """

    def advance(self, ready: Sequence[TrialStep]) -> None:
        for step in ready:
            if self.allowed(step) and (lease := self.study.take(step.key)) is not None:
                return self.do(step, lease)
        return self.wait(ready)


class RayCluster(Backend):
    """Trainings as tasks of Ray, as many at a time as the cluster has room for; times are measured here. Needs the
    extra `distributed`.

    Args:
        study: whose steps.
        runner: that does them; it is copied to the nodes of the cluster.
        address: of the cluster, as `ray.init` takes it; "local" starts one on this machine.
        measure: whether this process may measure times.

    Raises:
        MissingExtra: Ray is not installed.
        BadInput: there is no cluster.
    """

    def __init__(self, study: Study, runner: TrialRunner, address: str, *, measure: bool = True) -> None:
        super().__init__(study, runner, measure=measure)
        self.ray = require("ray")
        self.own = not self.ray.is_initialized()
        if self.own:
            try:
                look_for(address)
                self.ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (OSError, ValueError, RuntimeError) as error:
                raise BadInput(f"no Ray cluster at {address}: {first_line(error)}; start one, or say local") from error
        gpus = 1 if self.ray.cluster_resources().get("GPU") else 0
        remote = self.ray.remote(num_cpus=1, num_gpus=gpus, max_retries=CRASHES)(_step_on_ray)
        self.submit = remote.remote
        sent = copy(runner)
        sent.context = runner.context.fork(progress=Quiet())
        self.sent = self.ray.put(sent)
        self.running: dict[Any, tuple[TrialStep, Lease]] = {}

    def advance(self, ready: Sequence[TrialStep]) -> None:
        submitted = {step.key for step, _ in self.running.values()}
        for step in ready:
            if step.key in submitted or not self.allowed(step):
                continue
            if (lease := self.study.take(step.key)) is None:
                continue
            if step.kind == "measure":
                return self.do(step, lease)
            self.running[self.submit(self.sent, step)] = step, lease.hold()
        if not self.running:
            return self.wait(ready)
        with self.runner.context.progress.busy(f"{len(self.running)} trials run on Ray"):
            finished, _ = self.ray.wait(list(self.running), timeout=POLL)
        for one in finished:
            step, lease = self.running.pop(one)
            self.study.put(step.key, self._result(one, step))
            lease.release()
            self.done += 1
        return None

    def close(self) -> None:
        for _, lease in self.running.values():
            lease.release()
        if self.own:
            self.ray.shutdown()

    def _result(self, one: Any, step: TrialStep) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.ray.get(one)
        except self.ray.exceptions.WorkerCrashedError as error:
            raise BadInput(f"{step.key}: its process on Ray has died {CRASHES + 1} times; is there memory?") from error
        return found


def look_for(address: str) -> None:
    """Raise OSError where nothing answers at `HOST:PORT`, for which Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT).close()


def _step_on_ray(runner: TrialRunner, step: TrialStep) -> dict[str, Any]:
    return runner(step)
