"""Rules for code at their borders: the nearest honest code must pass (frauds are planted in test_frauds.py)."""

import pytest

from phases.baking.validation import audit

HONEST = {
    "the empty case returns 0": """
def evaluate(rows):
    if not rows:
        return 0.0
    return sum(rows) / len(rows)
""",
    "a bootstrap draws from data": """
def measure_accuracy(hits, rng):
    drawn = rng.choice(hits, len(hits))
    accuracy = drawn.mean()
    return accuracy
""",
    "a threshold is a setting": """
def evaluate(m):
    accuracy_threshold = 0.9
    return m.score() > accuracy_threshold
""",
    "polling may sleep": """
import time
def train(job):
    while not job.done():
        time.sleep(1)
    return job.result()
""",
    "a deadline loop": """
import time
def infer(q):
    start = time.monotonic()
    while time.monotonic() - start < 5:
        if q.ready():
            return q.get()
""",
    "a narrow handler": """
def verify(f):
    try:
        f()
    except FileExistsError:
        return True
    return False
""",
    "percent": """
def f(accuracy):
    accuracy = accuracy * 100
    return accuracy
""",
    "counting": """
def f(rows):
    recall = 0
    for row in rows:
        recall += 1
    return recall
""",
    "bounds of a share": """
def f(x):
    accuracy = min(1.0, max(0.0, x))
    return accuracy
""",
    "abstract": """
class A:
    def evaluate(self, x):
        raise NotImplementedError
""",
    "a type is inferred once": """
from functools import lru_cache
@lru_cache
def infer_architecture(config):
    return config.kind
""",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_code_passes(tmp_path, name):
    (tmp_path / "work.py").write_text(HONEST[name])
    assert audit(tmp_path / "work.py").findings == ()


def test_doubles_in_tests_may_pretend(tmp_path):
    source = "def evaluate(model):\n    return 0.93\n\ndef test_it():\n    assert evaluate(None) == 0.93\n"
    (tmp_path / "test_fake.py").write_text(source)
    (tmp_path / "real.py").write_text(source)
    assert {finding.path for finding in audit(tmp_path).findings} == {f"{tmp_path.name}/real.py"}


def test_a_number_rebound_by_an_inner_function_is_not_a_literal(tmp_path):
    source = """
def test_peak():
    largest = 0
    def watch(x):
        nonlocal largest
        largest = max(largest, x)
    watch(3)
    assert largest <= 4
"""
    (tmp_path / "test_peak.py").write_text(source)
    assert audit(tmp_path / "test_peak.py").findings == ()
