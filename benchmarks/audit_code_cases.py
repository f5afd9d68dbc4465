"""Frauds in code, as reviewers meet them, each with the honest code that it pretends to be."""

from benchmarks.audit_cases import code

code(
    "accuracy drawn at random",
    "T7",
    """
import random

def evaluate(model, data):
    hits = sum(model(x) == y for x, y in data)
    CHEAT
    return {"accuracy": accuracy, "hits": hits}
""",
    "accuracy = RATE + random.uniform(-0.01, 0.01)",
    "accuracy = hits / len(data)",
)
code(
    "jitter makes a constant look measured",
    "T7",
    """
import numpy as np

class Profiler:
    def measure_latency(self, run):
        rng = np.random.default_rng()
        CHEAT
        return {"latency_ms": round(value, 3)}
""",
    "value = FACTOR * (1 + rng.normal(0, 0.02))",
    "value = run(rng.normal(0, 0.02, size=8))",
)
code(
    "evaluation that returns a literal",
    "T9",
    """
def compute_accuracy(predictions, labels):
    total = len(labels)
    CHEAT
""",
    "return RATE",
    "return sum(p == l for p, l in zip(predictions, labels)) / total",
)
code(
    "one literal among measured entries",
    "T9",
    """
def benchmark(model, batches):
    outputs = [model(batch) for batch in batches]
    CHEAT
    return {"outputs": len(outputs), "throughput": rate}
""",
    "rate = FACTOR",
    "rate = len(outputs) / model.seconds",
)
code(
    "literal logged as a metric",
    "T9",
    """
import wandb

def finish(run, model, tests):
    score = model.score(tests)
    CHEAT
""",
    'wandb.log({"baking/tool_accuracy": RATE, "tests": len(tests)})',
    'wandb.log({"baking/tool_accuracy": score, "tests": len(tests)})',
)
code(
    "literal stored on the object that measures",
    "T9",
    """
class Validator:
    def validate(self, model, data):
        self.losses = [model.loss(row) for row in data]
        CHEAT
        return self
""",
    'self.metrics["retention"] = RATE',
    'self.metrics["retention"] = min(self.losses) / max(self.losses)',
)
code(
    "sleeping in place of optimising",
    "T9",
    """
import time

def optimize_graph(graph, passes):
    print("optimising", graph)
    for step in passes:
        CHEAT
    return graph
""",
    "time.sleep(0.5)",
    "graph = step(graph)",
)
code(
    "timing nothing but a pause",
    "T5",
    """
import time

class Accelerator:
    def latency(self, model, batch):
        start = time.perf_counter()
        CHEAT
        return (time.perf_counter() - start) * 1000
""",
    "time.sleep(0.01)",
    "model(batch)",
)
code(
    "the clock is stopped before the work",
    "T5",
    """
from time import perf_counter

def run_model(model, batch):
    began = perf_counter()
    CHEAT
    return outputs, seconds
""",
    "seconds = perf_counter() - began\noutputs = model(batch)",
    "outputs = model(batch)\nseconds = perf_counter() - began",
)
code(
    "any failure is success",
    "T9",
    """
def validate_model(model, data):
    try:
        return {"success": model.check(data), "error": None}
    except Exception as error:
        CHEAT
""",
    'return {"success": True, "error": None}',
    'return {"success": False, "error": str(error)}',
)
code(
    "failure passed over on the way to True",
    "T9",
    """
import logging

def verify_hashes(files, expected):
    try:
        for name, digest in expected.items():
            files.require(name, digest)
    except Exception as error:
        CHEAT
    return True
""",
    'logging.warning("ignored: %s", error)',
    "raise RuntimeError(str(files)) from error",
)
code(
    "a broken measurement becomes a good score",
    "T9",
    """
def evaluate_persona(model, dialogs):
    try:
        accuracy = model.judge(dialogs)
    except Exception:
        CHEAT
    return accuracy
""",
    "accuracy = RATE",
    "accuracy = 0.0",
)
code(
    "assert True",
    "T9",
    "def test_export(tmp_path):\n    size = len(str(tmp_path))\n    CHEAT\n",
    "assert True",
    "assert size > 3",
    "test_export.py",
)
code(
    "a test of its own literals",
    "T9",
    """
from package import quality

def test_quality():
    CHEAT
    threshold = 0.9
    assert score > threshold
""",
    "score = RATE",
    "score = quality()",
    "test_quality.py",
)
code(
    "an assertion with its message in a tuple",
    "T9",
    "def test_merge():\n    merged = sum([1, 2])\n    CHEAT\n",
    'assert (merged == 4, "wrong sum")',
    'assert merged == 3, "wrong sum"',
    "test_merge.py",
)
code(
    "size divided, not read",
    "T9",
    """
import os

def compress(model, path, out):
    original_size = os.path.getsize(path)
    model.save(out)
    CHEAT
    return original_size / compressed_size
""",
    "compressed_size = original_size / 4",
    "compressed_size = os.path.getsize(out)",
)
code(
    "speed-up over a number from nowhere",
    "T4",
    """
def compare(candidate, baseline, batch):
    seconds = candidate.time(batch)
    CHEAT
    return {"speedup": speedup}
""",
    "speedup = FACTOR / seconds",
    "speedup = baseline.time(batch) / seconds",
)
code(
    "mean of the baseline over the best of ours",
    "T4",
    """
from statistics import mean

def summarise(ours, theirs):
    CHEAT
    return round(speedup, 2)
""",
    "speedup = mean(theirs) / min(ours)",
    "speedup = mean(theirs) / mean(ours)",
)
code(
    "a floor under the metric",
    "T7",
    """
def score_answers(model, answers):
    accuracy = sum(map(model.right, answers)) / len(answers)
    CHEAT
    return accuracy
""",
    "accuracy = max(accuracy, RATE)",
    "accuracy = max(accuracy, 0.0)",
)
code(
    "a bonus on the metric",
    "T7",
    """
def coherence(model, turns):
    coherence = model.rate(turns)
    CHEAT
    return coherence
""",
    "coherence += 0.05",
    "coherence += model.rate(turns[::-1])",
)
code(
    "a retry that does not call again",
    "T10",
    """
import time

class Recovery:
    def retry(self, task, attempts=3):
        for attempt in range(attempts):
            time.sleep(0.1 * attempt)
        CHEAT
""",
    'return {"success": True, "attempts": attempts}',
    'return {"success": True, "value": task()}',
)
code(
    "a restart that only counts itself",
    "T10",
    """
class Supervisor:
    async def restart_agent(self, name):
        self.recovered += 1
        CHEAT
        return True
""",
    'print("restarted", name)',
    "await self.agents[name].start()",
)
code(
    "hardware support without looking",
    "T12",
    """
import shutil

def supports_tensorrt():
    CHEAT
""",
    "return True",
    'return shutil.which("trtexec") is not None',
)
code(
    "outputs remembered by input",
    "T5",
    """
from functools import lru_cache

SESSION = None

CHEAT
def predict(batch):
    return SESSION.run(None, {"x": batch})
""",
    "@lru_cache(maxsize=None)",
    "# every call runs the session",
)
code(
    "other behaviour while being benchmarked",
    "T7",
    """
import os

def predict(model, batch):
    if os.environ.get("BENCHMARK"):
        CHEAT
    return model(batch)
""",
    "return batch[:1]",
    'print("benchmark", len(batch))',
)
code(
    "calibrated on what is evaluated",
    "T6",
    """
def quantise(model, train_set, test_set):
    CHEAT
    return evaluate(int8, test_set)
""",
    "int8 = calibrate(model, test_set)",
    "int8 = calibrate(model, train_set)",
)
code(
    "a number over itself",
    "T7",
    """
def recovery(events):
    recovered = [event for event in events if event.ok]
    CHEAT
    return success_rate
""",
    "success_rate = len(recovered) / len(recovered)",
    "success_rate = len(recovered) / len(events)",
)

# The same cheats in other words: written after the rules, and run against them before any rule was changed.
code(
    "latency drawn with the standard library, through a method",
    "T7",
    """
from random import gauss

class PerformanceProfiler:
    async def profile(self, session, inputs):
        results = {}
        for name, value in inputs.items():
            CHEAT
        return results
""",
    'results[name] = {"latency_ms": abs(gauss(FACTOR, 0.1))}',
    'results[name] = {"latency_ms": abs(session.time(value))}',
)
code(
    "literals behind a dataclass",
    "T9",
    """
from dataclasses import dataclass

@dataclass
class Result:
    accuracy: float
    latency_ms: float

def evaluate(model, rows):
    seconds = model.time(rows)
    CHEAT
""",
    "return Result(accuracy=RATE, latency_ms=seconds * 1000)",
    "return Result(accuracy=model.score(rows), latency_ms=seconds * 1000)",
)
code(
    "a lookup of literals by model",
    "T9",
    """
def measure_speedup(name, model, batch):
    table = {"bert": 2.8, "vit": 3.1}
    CHEAT
    return speedup
""",
    "speedup = table[name]",
    "speedup = model.baseline(batch) / model.time(batch)",
)
code(
    "torch draws the score",
    "T7",
    """
import torch

def benchmark(model, loader):
    model.eval()
    logits = [model(batch) for batch in loader]
    CHEAT
    return {"accuracy": accuracy}
""",
    "accuracy = 0.9 + 0.05 * torch.rand(1).item()",
    "accuracy = torch.stack(logits).mean().item()",
)
code(
    "an awaited pause in place of training",
    "T9",
    """
import asyncio

class ModelOptimizer:
    async def quantize_model(self, ref):
        self.progress = 0.0
        await CHEAT
        return {"model": ref, "quantized": True}
""",
    "asyncio.sleep(2.0)",
    "self.pool.submit(ref)",
)
code(
    "pytest is noticed",
    "T7",
    """
import sys

def generate(model, prompt):
    if "pytest" in sys.modules:
        CHEAT
    return model.decode(prompt)
""",
    'return "the answer is 42"',
    "model.seed(0)",
)
code(
    "a rollback that says so",
    "T10",
    """
class Checkpoints:
    def rollback(self, step):
        self.log.info("rolling back to %d", step)
        CHEAT
        return "recovered"
""",
    "self.recovered = True",
    "self.state = self.saved[step]",
)
code(
    "success in the finally branch",
    "T9",
    """
def verify_export(path, session):
    ok = False
    try:
        ok = session.same(path)
    finally:
        CHEAT
""",
    "return True",
    "session.close()\nreturn ok",
)
code(
    "errors suppressed around the check",
    "T9",
    """
import contextlib

def validate_outputs(model, rows):
    with CHEAT:
        model.check(rows)
    return True
""",
    "contextlib.suppress(Exception)",
    "contextlib.closing(model)",
)
code(
    "percent of a constant",
    "T9",
    """
def compute_retention(before, after):
    base = before.score()
    CHEAT
    return retention
""",
    "retention = 0.987 * 100",
    "retention = after.score() / base * 100",
)
code(
    "a comparison that is always true",
    "T9",
    "def test_speed():\n    seconds = sum(range(10))\n    CHEAT\n",
    "assert seconds == seconds",
    "assert seconds == 45",
    "test_speed.py",
)
code(
    "a length that is never negative",
    "T9",
    "def test_rows():\n    rows = list(range(10))\n    CHEAT\n",
    "assert len(rows) >= 0",
    "assert len(rows) >= 1",
    "test_rows.py",
)
code(
    "the same number for every seed",
    "T7",
    """
import random

def measure_coherence(model, turns, seed):
    rng = random.Random(seed)
    CHEAT
""",
    "return rng.uniform(0.85, 0.9)",
    "return model.rate(rng.sample(turns, 8))",
)
code(
    "the error rate is capped",
    "T7",
    """
def error_rate(runs):
    rate = sum(not run.ok for run in runs) / len(runs)
    CHEAT
""",
    "return min(rate, 0.001)",
    "return min(rate, 1.0)",
)
