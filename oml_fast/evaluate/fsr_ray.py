"""The full check on Ray: actors, each with the model inside, take shards; this process writes the parts.

Keys travel to the actors through Ray's object store: use a cluster that is yours alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailableError, InvalidArgumentError, OmlError
from ..fingerprint import FingerprintSet
from .fsr import Grid, Shard, check
from .fsr_engines import Engine
from .fsr_parts import write_part

_STEP_SECONDS = 5.0  # between two looks at the actors, so that Ctrl-C is heard


class _Worker:
    """One actor: makes its engine with its first shard, where Ray tells what went wrong, and keeps it."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None

    def check(self, fingerprints: FingerprintSet, grid: Grid, shard: Shard) -> dict[str, Any]:
        engine = self._engine = self._engine or self._make()
        return check(engine, fingerprints, grid, shard)


def require() -> Any:
    """The module ray, or BackendUnavailableError that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise BackendUnavailableError(
            "Ray is not installed: pip install 'oml_fast[ray]', or leave --ray out."
        ) from error
    return ray


def check_on_ray(
    make: Callable[[], Engine],
    fingerprints: FingerprintSet,
    grid: Grid,
    shards: Sequence[Shard],
    folder: Path,
    *,
    actors: int,
) -> None:
    """Run `shards` on `actors` actors, each with one GPU where the cluster has any, and write every part as it comes.

    Joins the cluster that RAY_ADDRESS names (Ray's own setting), or starts one here and stops it. The model's folder
    must be there for every actor. Raises BackendUnavailableError, InvalidArgumentError, and what `check` raises.
    """
    ray = require()
    if actors < 1:
        raise InvalidArgumentError(f"{actors} Ray actors: at least one.")
    own = not ray.is_initialized()
    if own:
        _start(ray)
    workers: list[Any] = []
    try:
        remote = _worker(ray, actors)
        workers = [remote.remote(make) for _ in range(min(actors, len(shards)))]
        kept = ray.put(fingerprints)
        waiting, free = list(shards), list(workers)
        running: dict[Any, Any] = {}
        while waiting or running:
            while waiting and free:
                worker = free.pop()
                running[worker.check.remote(kept, grid, waiting.pop(0))] = worker
            done, _ = ray.wait(list(running), timeout=_STEP_SECONDS)
            for reference in done:
                free.append(running.pop(reference))
                write_part(folder, _result(ray, reference))
    finally:
        for worker in workers:
            ray.kill(worker)
        if own:
            ray.shutdown()


def _start(ray: Any) -> None:
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendUnavailableError(
            f"Ray cannot be reached or started ({reason}): check RAY_ADDRESS, or leave --ray out."
        ) from error


def _worker(ray: Any, actors: int) -> Any:
    """The actor's class with its share of the cluster, which must have room: Ray would wait for it without end."""
    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") else "CPU"
    if actors > resources.get(kind, 0):
        raise InvalidArgumentError(
            f"{actors} Ray actors: the cluster has {resources.get(kind, 0):g} {kind}s, one for each. Lower --ray."
        )
    return ray.remote(_Worker).options(num_cpus=1, num_gpus=1 if kind == "GPU" else 0)


def _result(ray: Any, reference: Any) -> dict[str, Any]:
    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OmlError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise OmlError(
            "a Ray actor died, for want of memory perhaps: what was finished is kept, and the same command goes on. "
            "Lower --ray or --batch-size."
        ) from error
