"""Ray metrics of training agents and of a run's health; Ray exports them to Prometheus and shows them in its dashboard.

What Ray measures itself is not repeated: CPU, memory, disk and GPUs of nodes are in `ray_node_*`.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

_TAGS = ("phase", "model")
_SHOWN = {
    "loss": "training loss, nats per token",
    "grad_norm": "norm of the gradient before clipping",
    "tokens_per_second": "training tokens per second",
}


class StepGauges:
    """The gauges `forge_<metric>` with the tags phase and model."""

    def __init__(self, phase: str, model: str) -> None:
        self._tags = {"phase": phase, "model": model}
        self._gauges = {name: Gauge(f"forge_{name}", about, tag_keys=_TAGS) for name, about in _SHOWN.items()}

    def set(self, metrics: dict[str, float]) -> None:
        """Publish the values of one step; metrics without a gauge are left out."""
        for name, gauge in self._gauges.items():
            if name in metrics:
                gauge.set(metrics[name], tags=self._tags)


_HEALTH = {
    "availability_claim": "share of calls to agents that are answered, as far as their number proves at 95 %",
    "calls": "calls in the window of the availability",
    "calls_failed": "calls in that window that were not answered",
    "errors_per_minute": "failures of tasks",
    "reruns_per_minute": "tasks that are run again",
    "alerts": "conditions that are worth an alert now",
}


class HealthGauges:
    """The gauges `forge_health_<what>` with the tag run; of agents and queues also with their names."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._gauges = {name: Gauge(f"forge_health_{name}", about, ("run",)) for name, about in _HEALTH.items()}
        self._silent = Gauge("forge_agent_silent_seconds", "since an agent has answered", ("run", "agent"))
        self._pending = Gauge("forge_queue_pending", "messages that wait for a receiver", ("run", "receiver"))
        self._dead = Gauge("forge_queue_dead", "dead letters to a receiver", ("run", "receiver"))

    def set(self, report: Mapping[str, Any]) -> None:
        """Publish a report of `recovery.health.Health`."""
        available, rates = report["availability"], report["rates"]
        values = {name: rates[name] for name in ("errors_per_minute", "reruns_per_minute")}
        values |= {"calls": available["calls"], "calls_failed": available["failed"], "alerts": len(report["alerts"])}
        for name, value in (values | {"availability_claim": available["claim"]}).items():
            self._gauges[name].set(value, tags=self._run)
        for agent, known in report["agents"].items():
            if known["silent_seconds"] is not None:
                self._silent.set(known["silent_seconds"], tags=self._run | {"agent": agent})
        for receiver, queue in report["queues"].items():
            self._pending.set(queue["pending"], tags=self._run | {"receiver": receiver})
            self._dead.set(queue["dead"], tags=self._run | {"receiver": receiver})
