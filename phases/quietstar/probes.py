"""The measurements behind the claims of phase 3, on held-out text with greedy thoughts."""

import json
from typing import Any

import torch

from phases.cognate.loading import load_model
from phases.corpus.packed import Corpus
from phases.probes import Measurement, RunFiles, probe
from phases.quietstar import phase, sources
from phases.quietstar.config import QuietStarConfig
from phases.quietstar.measure import TextMeasured, measure_coherence, measure_text, thought_entropy
from phases.seeds import child_seed


@probe("quietstar/text")
def text(files: RunFiles, quantity: str, config: dict[str, Any], seed: int, parent: str) -> Measurement:
    """Return bits per byte `within` or `without` thoughts, of the `parent` or of the `control`; the `gain` and its
    interval, `low` and `high`, or that of random tokens, `gain_random`; the mean `weight` of thoughts; or their `cost`
    in tokens per token of text.
    """
    settings = QuietStarConfig.model_validate(config)
    if quantity == "gain_random":
        return Measurement(_random_gain(files, settings, seed))
    found, before = _text(files, settings, parent)
    low, high = found.interval(settings.evaluation.resamples, seed)
    return Measurement(
        {
            "within": found.bits_per_byte(found.within),
            "without": found.bits_per_byte(found.without),
            "parent": found.bits_per_byte(before["parent"]),
            "control": found.bits_per_byte(before["control"]),
            "gain": found.gain,
            "low": low,
            "high": high,
            "weight": found.weight,
            "cost": found.thought_tokens,
        }[quantity]
    )


@probe("quietstar/entropy")
def entropy(files: RunFiles, config: dict[str, Any], seed: int, parent: str) -> Measurement:
    """Return the nats per token of thoughts sampled about held-out text."""
    settings = QuietStarConfig.model_validate(config)
    with torch.random.fork_rng():
        torch.manual_seed(child_seed(seed, "quietstar", "entropy"))
        return Measurement(thought_entropy(phase.open_thinker(files).thinker, _rows(files, settings)))


@probe("quietstar/coherence")
def coherence(files: RunFiles, part: str, config: dict[str, Any], seed: int, parent: str) -> Measurement:
    """Return the mean of a component of coherence, or the `total`, over greedy thoughts about held-out text."""
    key = ("quietstar/coherence", json.dumps(config, sort_keys=True))
    if key not in files.cache:
        rows = _rows(files, QuietStarConfig.model_validate(config))
        files.cache[key] = measure_coherence(phase.open_thinker(files).thinker, rows)
    return Measurement(files.cache[key][part])


def _random_gain(files: RunFiles, config: QuietStarConfig, seed: int) -> float:
    """Return the bits per byte of the test text that random tokens in the places of thoughts save."""
    rows, corpus = _rows(files, config), Corpus.of_run(files.uri)
    with torch.random.fork_rng():
        torch.manual_seed(child_seed(seed, "quietstar", "random thoughts"))
        return measure_text(phase.open_thinker(files).thinker, rows, corpus.token_bytes, sources.random).gain


def _text(files: RunFiles, config: QuietStarConfig, parent: str) -> tuple[TextMeasured, dict[str, torch.Tensor]]:
    """Return what thoughts do to the test text, and its nats under the phase's parent and its control."""
    key = ("quietstar/text", config.model_dump_json(), parent)
    if key not in files.cache:
        rows, corpus = _rows(files, config), Corpus.of_run(files.uri)
        found = measure_text(phase.open_thinker(files).thinker, rows, corpus.token_bytes)
        models = {"parent": parent, "control": phase.CONTROL}
        with torch.inference_mode():
            others = {role: load_model(files.path(at)).model.evaluate(rows).nll.cpu() for role, at in models.items()}
        files.cache[key] = found, others
    result: tuple[TextMeasured, dict[str, torch.Tensor]] = files.cache[key]
    return result


def _rows(files: RunFiles, config: QuietStarConfig) -> torch.Tensor:
    device = phase.open_thinker(files).thinker.head_weight.device
    return phase.text_rows(Corpus.of_run(files.uri), config, "test").to(device)
