"""Generated tasks with answers that a program can check: fresh for every seed, test instances never in train.

Which split an instance belongs to is decided by the hash of its prompt, and a generator for a split draws until the
hash falls into it: the splits are disjoint whatever the seeds.
"""

import hashlib

import numpy as np

from phases.corpus.tasks import arithmetic, permutation, pointer, recall, tool_call
from phases.corpus.tasks.instance import Generator, TaskInstance
from phases.seeds import numpy_rng

TASKS: dict[str, Generator] = {
    "arithmetic": arithmetic.generate,
    "permutation": permutation.generate,
    "pointer": pointer.generate,
    "recall": recall.generate,
    "tool_call": tool_call.generate,
}
SPLITS = ("train", "validation", "test")
_UPPER_ENDS = (0.90, 0.95, 1.0)


def split_of(key: bytes) -> str:
    """Return the split of a document or prompt by its hash: 90% train, 5% validation, 5% test."""
    share = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
    return next(split for split, end in zip(SPLITS, _UPPER_ENDS, strict=True) if share < end)


def draw(task: str, rng: np.random.Generator, split: str) -> TaskInstance:
    """Return an instance of `task` that belongs to `split`; its difficulty is uniform in [0, 1]."""
    while True:
        instance = TASKS[task](rng, float(rng.random()))
        if split_of(f"{task}:{instance.prompt}".encode()) == split:
            return instance


def task_instances(task: str, split: str, count: int, seed: int) -> list[TaskInstance]:
    """Return `count` instances for evaluation, the same for the same arguments."""
    rng = numpy_rng(seed, "task", task, split)
    return [draw(task, rng, split) for _ in range(count)]
