"""Key-value recall over a distance: pairs, then filler that tells nothing, then one of the keys."""

from itertools import cycle, islice

import numpy as np

from phases.corpus.tasks.instance import TaskInstance, scaled

_CONSONANTS, _VOWELS = "bdfgklmnprst", "aeiou"
_FILLER = "the rest of this line says nothing about any key and only takes up room before the question"


def generate(rng: np.random.Generator, difficulty: float) -> TaskInstance:
    """Draw two to eight pairs and up to 150 filler words between them and the question."""
    count = scaled(difficulty, 2, 8)
    keys: list[str] = []
    while len(keys) < count:
        key = "".join(rng.choice(list(letters)) for letters in (_CONSONANTS, _VOWELS, _CONSONANTS))
        if key not in keys:
            keys.append(key)
    values = [str(rng.integers(100)) for _ in keys]
    length = int(rng.integers(0, 1 + int(150 * difficulty)))
    filler = " ".join(islice(cycle(_FILLER.split()), length))
    asked = int(rng.integers(count))
    pairs = " ".join(f"{key}:{value}" for key, value in zip(keys, values, strict=True))
    return TaskInstance(f"{pairs} {filler} {keys[asked]} =", values[asked], count)
