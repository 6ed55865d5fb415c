"""What each licensee uses: summed in memory, handed each second to the registry and to Prometheus."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict

from ..errors import InvalidArgumentError, OmlError
from ..registry import UsageLog, Used
from .metrics import Metrics

LOG = logging.getLogger("oml_fast.permission_gate")
Counts = defaultdict[tuple[str, str], Counter[str]]  # by licensee and model: how many of what


class Meter:
    """Counts of one process. Safe for threads; `flush` waits for the registry, so it is not for an event loop."""

    def __init__(self, log: UsageLog | None = None, metrics: Metrics | None = None) -> None:
        self._log, self._metrics = log, metrics
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._used: Counts = defaultdict(Counter)
        self._refused: Counter[str] = Counter()
        self._unrecorded: Counts = defaultdict(Counter)
        self._failing = False

    def add(self, licensee: str, model: str, **counts: int) -> None:
        """A request that was admitted has its end. counts: fields of `registry.Used`; one request is added."""
        with self._lock:
            used = self._used[licensee, model]
            used["requests"] += 1
            for what, count in counts.items():
                used[what] += count

    def refused(self, code: str) -> None:
        with self._lock:
            self._refused[code] += 1

    def flush(self, now: float | None = None) -> None:
        """Hand over what was counted since. What the registry cannot take now is kept, and handed over later."""
        with self._flushing:
            with self._lock:
                used, self._used = self._used, defaultdict(Counter)
                refused, self._refused = self._refused, Counter()
            if self._metrics is not None:
                self._metrics.count(_rows(used), refused)
            if self._log is None:
                return
            for who, counts in used.items():
                self._unrecorded[who] += counts
            if self._unrecorded:
                self._record(self._log, time.time() if now is None else now)

    def close(self) -> None:
        """Hand over what is left, and let go of the registry and of the address where counters are read."""
        self.flush()
        if self._log is not None:
            self._log.close()
        if self._metrics is not None:
            self._metrics.close()

    def _record(self, log: UsageLog, now: float) -> None:
        try:
            log.add(_rows(self._unrecorded), now)
        except InvalidArgumentError as error:  # would be refused for ever, and all that comes after it
            LOG.error("usage is lost, for the registry cannot hold it: %s", error)
        except OmlError as error:
            if not self._failing:
                LOG.warning("usage is kept in memory, for the registry does not take it: %s", error)
            self._failing = True
            return
        self._unrecorded.clear()
        self._failing = False


def _rows(used: Counts) -> list[Used]:
    """A row for each licensee and model."""
    return [Used(licensee, model, **counts) for (licensee, model), counts in used.items()]
