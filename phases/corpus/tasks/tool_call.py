"""A request and the JSON function call that serves it: the right function with the right arguments, in one line."""

import json

import numpy as np

from phases.corpus.tasks.instance import TaskInstance

_CITIES = ["Oslo", "Lima", "Cairo", "Delhi", "Paris", "Quito", "Tokyo", "Accra", "Turin", "Perth"]
_TOPICS = ["ternary weights", "ray actors", "model merging", "sparse attention", "byte pairs", "tool use"]


def generate(rng: np.random.Generator, difficulty: float) -> TaskInstance:
    """Draw a request for one of three tools; a harder one has more arguments."""
    kind = int(rng.integers(3))
    if kind == 0:
        city, days = str(rng.choice(_CITIES)), int(rng.integers(1, 15))
        plain = difficulty < 0.5
        asked = f"weather in {city}" if plain else f"weather in {city} for {days} days"
        return _instance(asked, "weather", {"city": city} if plain else {"city": city, "days": days})
    if kind == 1:
        topic, count = str(rng.choice(_TOPICS)), int(rng.integers(1, 100))
        return _instance(f"find {count} pages on {topic}", "rag_query", {"query": topic, "k": count})
    a, b = (int(rng.integers(1000)) for _ in range(2))
    return _instance(f"run {a} * {b}", "code_execution", {"code": f"print({a} * {b})"})


def _instance(asked: str, name: str, arguments: dict[str, str | int]) -> TaskInstance:
    return TaskInstance(asked, json.dumps({"name": name, "arguments": arguments}), 1 + len(arguments))
