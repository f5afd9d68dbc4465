"""Ray metrics of a training agent; Ray exports them to Prometheus and shows them in its dashboard."""

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
