"""The vocabulary of measuring: which names mean a measured quantity, a ratio, a time, a target.

Checks of reports and of code share it. A name is split at underscores, slashes, dots and capitals, and read from its
end, since `accuracy_threshold` is a threshold and `tool_accuracy` an accuracy. Names that state a wish (target,
threshold, minimum) are never measured quantities.
"""

import re
from functools import lru_cache


def vocabulary(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


METRICS = vocabulary(
    "accuracy recall f1 auc bleu rouge latency throughput speedup perplexity reliability availability uptime "
    "coherence retention improvement reduction"
)
FRACTIONS = vocabulary("accuracy recall f1 auc reliability availability uptime coherence retention score")
_PAIRS = vocabulary(
    "success_rate error_rate win_rate hit_rate pass_rate recovery_rate compression_ratio speed_ratio size_ratio "
    "latency_ratio size_reduction memory_reduction quality_score accuracy_score precision_score helpfulness_score "
    "creativity_score coherence_score reliability_percent latency_ms latency_s latency_seconds latency_p50 "
    "latency_p95 latency_p99 inference_time inference_ms throughput_tps tokens_per_second cosine_similarity "
    "f1_score auc_score"
)
_WISHES = vocabulary(
    "target threshold min max minimum maximum default goal expected limit tolerance floor ceiling init initial prior "
    "budget cutoff weight weights noise fake mock simulated simulate dummy example required allowed nominal "
    "theoretical sla want wanted step delta epsilon eps penalty"
)
_TIMES = vocabulary("latency throughput speedup speed time seconds ms duration tps")
_TIME_UNITS = frozenset({"ms", "us", "s", "seconds", "ns", "tok/s", "tokens/s", "it/s", "qps", "req/s", "items/s"})
AVAILABILITY = vocabulary("availability reliability uptime")
SIZES = vocabulary("size bytes mb compression footprint")


@lru_cache(maxsize=65536)
def parts(name: str) -> tuple[str, ...]:
    """Split an identifier or key into lower-case words."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return tuple(part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part)


def last_part(key: str) -> str:
    """Return what is after the last slash of a key."""
    return key.rpartition("/")[2]


@lru_cache(maxsize=65536)
def is_metric(name: str) -> bool:
    """Say whether a name means a measured quantity."""
    found = parts(last_part(name))
    if not found or _WISHES & set(found):
        return False
    return found[-1] in METRICS or "_".join(found[-2:]) in _PAIRS


def is_fraction(name: str) -> bool:
    """Say whether a name means a quality of which more is better."""
    found = parts(last_part(name))
    rates = {"success_rate", "pass_rate", "hit_rate", "win_rate", "recovery_rate"}
    return is_metric(name) and (found[-1] in FRACTIONS or "_".join(found[-2:]) in rates)


def is_ratio(name: str) -> bool:
    """Say whether a name means a quotient of two measurements."""
    return parts(last_part(name))[-1:] in {("speedup",), ("ratio",)}


def is_timing(name: str, unit: str = "") -> bool:
    """Say whether a name and unit mean a time or a speed."""
    return unit.strip().lower() in _TIME_UNITS or bool(_TIMES & set(parts(last_part(name))))


def is_size(name: str) -> bool:
    """Say whether a name means bytes."""
    return bool(SIZES & set(parts(last_part(name))))
