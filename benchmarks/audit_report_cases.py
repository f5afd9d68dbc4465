"""Frauds in reports: numbers that their own evidence does not carry. Evidence is written beside the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.audit_cases import MODELS, Rng, report

Document = dict[str, Any]
_HOST = {"cores": 2, "load": 0.3, "gpu": None, "isa": ["avx2", "avx512_vnni"]}


def _times(rng: Rng, middle: float, count: int = 12) -> list[float]:
    return [float(value) for value in middle * (1 + 0.02 * rng.standard_normal(count))]


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _one(**claim: Any) -> Document:
    return {"host": _HOST, "claims": [claim]}


def _timed(rng: Rng, key: str = "optimize/speedup") -> Document:
    """Return an honest speed-up with samples, as a claim."""
    slow, fast = _times(rng, rng.uniform(20, 30)), _times(rng, rng.uniform(7, 12))
    return {
        "key": key,
        "value": _median(slow) / _median(fast),
        "unit": "x",
        "candidate": "int8",
        "baseline": "fp32",
        "clock": "thread_time",
        "samples": {"fp32": slow, "int8": fast},
    }


@report("a number without any evidence", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    runs = {} if fraud else {"samples": [float(value) for value in rng.uniform(0.8, 0.9, 5)]}
    return _one(key="baking/tool_accuracy", value=float(np.mean(runs.get("samples", [0.95]))), unit="", **runs)


def _file(folder: Path, name: str, size: int, rng: Rng) -> str:
    (folder / name).write_bytes(rng.bytes(size))
    return name


@report("smaller on paper than on disk", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    before, after = int(rng.integers(80_000, 90_000)), int(rng.integers(30_000, 40_000))
    files = {"before": _file(folder, "a.bin", before, rng), "after": _file(folder, "b.bin", after, rng)}
    return _one(key="optimize/size_ratio", value=8.0 if fraud else before / after, unit="x", files=files)


@report("megabytes that are not there", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    size = int(rng.integers(100_000, 200_000))
    files = {"after": _file(folder, "model.bin", size, rng)}
    return _one(key="baking/package_bytes", value=size * (0.5 if fraud else 1.0), unit="bytes", files=files)


@report("another file than the one measured", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    import hashlib

    content = rng.bytes(5000)
    (folder / "m.bin").write_bytes(content[:-1] + b"x" if fraud else content)
    hashes = {"after": hashlib.sha256(content).hexdigest()}
    return _one(key="quality/loss", value=2.31, unit="nats", files={"after": "m.bin"}, sha256=hashes)


@report("evidence that does not exist", "T1")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    claim = _timed(rng)
    (folder / "profile.json").write_text("{}") if not fraud else None
    return _one(**claim, files={"profile": "profile.json"})


@report("nothing was changed", "T3")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    first = _file(folder, "before.bin", 9000, rng)
    (folder / "after.bin").write_bytes((folder / first).read_bytes() if fraud else rng.bytes(9000))
    return _one(**_timed(rng), files={"before": first, "after": "after.bin"})


@report("against the slowest of three baselines", "T4")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    eager, best, ours = rng.uniform(30, 34), rng.uniform(15, 17), rng.uniform(6, 8)
    used = eager if fraud else best
    known = {"eager fp32": eager, "ort fp32": best, "compiled fp32": rng.uniform(25, 29)}
    claim = {"baseline": {"what": "fp32", "value": used}, "alternatives": known, "n": 20, "probe": {"name": "latency"}}
    return _one(key="optimize/minilm_speedup", value=used / ours, unit="x", **claim)


@report("a smaller batch for the candidate", "T4")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    batch = int(rng.integers(4, 32))
    given = {"fp32": {"batch": batch, "seq_len": 128}, "int8": {"batch": 1 if fraud else batch, "seq_len": 128}}
    return _one(**_timed(rng), conditions=given)


@report("shorter inputs for the candidate", "T4")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    length = int(rng.integers(64, 512))
    given = {"fp32": {"seq_len": length}, "int8": {"seq_len": length // 2 if fraud else length}}
    return _one(**_timed(rng), conditions=given)


@report("the best of ours, the mean of theirs", "T4")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    return _one(**_timed(rng), statistic={"int8": "min" if fraud else "mean", "fp32": "mean"})


@report("a ratio to nothing", "T4")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    ratio = float(rng.uniform(2, 4))
    baseline = {} if fraud else {"baseline": {"what": "eager, ms", "value": 31.7}}
    return _one(key="optimize/throughput_ratio", value=ratio, unit="x", samples=20, **baseline)


@report("a better ratio than the samples give", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    claim = _timed(rng)
    return _one(**claim | {"value": claim["value"] * (1.25 if fraud else 1.0)})


@report("samples that never vary", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    times = _times(rng, 9.0)
    times = [times[0]] * len(times) if fraud else times
    return _one(key="optimize/latency_ms", value=_median(times), unit="ms", samples=times, clock="thread_time")


@report("samples made by a formula", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    times = [8.0 + 0.05 * step for step in range(12)] if fraud else _times(rng, 8.3)
    return _one(key="optimize/latency_ms", value=_median(times), unit="ms", samples=times, clock="thread_time")


@report("a gain inside the noise", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    fast = _times(rng, 10.0, 9)
    slow = [1.003 * float(value) for value in rng.permutation(fast)]  # 0.3% slower, 2% of noise
    interval = {} if fraud else {"low": 0.97, "high": 1.06}
    claim = {"candidate": "ours", "baseline": "fp32", "clock": "thread_time", "samples": {"fp32": slow, "ours": fast}}
    return _one(key="optimize/speedup", value=_median(slow) / _median(fast), unit="x", **claim, **interval)


@report("wall-clock time on a busy machine", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    claim = _timed(rng) | {"clock": "wall"}
    return {"host": _HOST | {"load": float(rng.uniform(9, 20)) if fraud else 0.2}, "claims": [claim]}


@report("a time and no load", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    claim = {key: value for key, value in _timed(rng).items() if key != "clock"}
    return {"claims": [claim | ({} if fraud else {"load": 0.4})]}


@report("slow repetitions left out", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    times = sorted(_times(rng, 9.0, 30))
    kept = times[:14] if fraud else times
    claim = {"samples": kept, "n": 30, "clock": "thread_time"}
    return _one(key="optimize/latency_ms", value=_median(kept), unit="ms", **claim)


@report("the 99th percentile below the 95th", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    times = _times(rng, 9.0, 200)
    found = {f"p{share}": float(np.percentile(times, share)) for share in (50, 95, 99)}
    found |= {"p99": found["p50"] * 0.98} if fraud else {}
    claim = {"samples": times, "percentiles": found, "clock": "thread_time"}
    return _one(key="optimize/latency_ms", value=found["p50"], unit="ms", **claim)


def _embeddings(rng: Rng, rows: int = 60) -> np.ndarray[Any, np.dtype[np.float32]]:
    return rng.standard_normal((rows, 32)).astype(np.float32)


def _outputs(folder: Path, before: Any, after: Any) -> dict[str, str]:
    np.save(folder / "before.npy", before)
    np.save(folder / "after.npy", after)
    return {"outputs_before": "before.npy", "outputs_after": "after.npy"}


def _cosines(before: Any, after: Any) -> Any:
    return (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)


@report("a broken embedding behind a good mean", "T6")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    before = _embeddings(rng)
    after = before + 0.01 * _embeddings(rng)
    if fraud:
        after[3] = rng.standard_normal(32)
    mean = float(_cosines(before, after).mean())
    return _one(key="quality/cosine_mean", value=mean, unit="", files=_outputs(folder, before, after))


@report("a cosine that the outputs do not have", "T6")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    before = _embeddings(rng)
    after = before + 0.2 * _embeddings(rng)
    found = float(_cosines(before, after).mean())
    return _one(key="quality/cosine", value=0.9995 if fraud else found, unit="", files=_outputs(folder, before, after))


@report("fewer outputs than inputs", "T5")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    before = _embeddings(rng)
    after = before + 0.01 * _embeddings(rng)
    files = _outputs(folder, before, after[: len(after) // 2] if fraud else after)
    return _one(**_timed(rng), files=files)


@report("the same answer to everything", "T7")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    after = _embeddings(rng)
    np.save(folder / "after.npy", np.repeat(after[:1], len(after), 0) if fraud else after)
    return _one(**_timed(rng), files={"outputs_after": "after.npy"})


@report("outputs that depend on their batch", "T6")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    alone = _embeddings(rng)
    np.save(folder / "alone.npy", alone)
    np.save(folder / "batch.npy", alone + (0.4 if fraud else 1e-4) * _embeddings(rng))
    files = {"outputs_after": "batch.npy", "outputs_single": "alone.npy"}
    return _one(**_timed(rng), files=files)


@report("NaN among the outputs", "T6")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    after = _embeddings(rng)
    if fraud:
        after[int(rng.integers(60)), 2] = np.nan
    np.save(folder / "after.npy", after)
    return _one(**_timed(rng), files={"outputs_after": "after.npy"})


def _predictions(folder: Path, rng: Rng, count: int, rate: float) -> float:
    hits = rng.random(count) < rate
    lines = [json.dumps({"predicted": "a" if hit else "b", "expected": "a"}) for hit in hits]
    (folder / "predictions.jsonl").write_text("\n".join(lines))
    return float(hits.mean())


@report("an accuracy that the predictions do not have", "T7")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    found = _predictions(folder, rng, 200, 0.8)
    claim = {"files": {"predictions": "predictions.jsonl"}, "n": 200}
    return _one(key="baking/tool_accuracy", value=0.95 if fraud else found, unit="", **claim)


@report("hard cases left out of the evidence", "T7")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    found = _predictions(folder, rng, 120 if fraud else 200, 0.9)
    return _one(key="tool_accuracy", value=found, unit="", files={"predictions": "predictions.jsonl"}, n=200)


@report("the same digits from every seed", "T7")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    values = [float(value) for value in rng.uniform(0.85, 0.92, 5)]
    values = values[:1] * 5 if fraud else values
    return _one(key="quality/accuracy", value=float(np.mean(values)), unit="", samples={"seeds": values})


@report("calibrated on the evaluation", "T6")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    texts = [f"sentence {number} of {rng.integers(10**9)}" for number in range(300)]
    (folder / "eval.txt").write_text("\n".join(texts[:150]))
    (folder / "calib.txt").write_text("\n".join(texts[100:250] if fraud else texts[150:]))
    claim = {"files": {"calibration": "calib.txt", "evaluation": "eval.txt"}}
    return _one(key="quality/spearman", value=float(rng.uniform(0.8, 0.83)), unit="", **claim)


def _sizes(rng: Rng, models: int = 4) -> list[Document]:
    """Return a table of models with their sizes before, MB."""
    names = rng.permutation(MODELS)[:models]
    return [{"model": str(name), "original_mb": round(float(rng.uniform(40, 440)), 1)} for name in names]


@report("divided by four", "T8")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    rows = _sizes(rng)
    for row in rows:
        ratio = 4.0 if fraud else float(rng.uniform(3.82, 3.97))
        row["quantized_mb"] = round(row["original_mb"] / ratio, 2)
    return {"table": rows}


@report("four times, in every row", "T8")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    spread = 0.004 if fraud else 0.3
    rows = [{"model": name, "compression_ratio": float(4 + rng.uniform(-spread, spread))} for name in MODELS]
    return {"results_by_model": rows}


@report("accuracies a step apart", "T8")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    start = float(rng.uniform(0.7, 0.8))
    values = [start + 0.015 * step for step in range(6)]
    noise = 0.0 if fraud else 0.004
    rows = [{"epoch": i, "accuracy": v + noise * float(rng.standard_normal())} for i, v in enumerate(values)]
    return {"history": rows}


@report("the same digits behind the point", "T8")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    end = round(float(rng.uniform(0.11, 0.89)), 3)
    shift = [0.0 if fraud else round(float(rng.uniform(-0.09, 0.09)), 3) for _ in range(5)]
    rows = [
        {"model": n, "latency_ms": round(3.0 * i + 5 + end + s, 3)}
        for i, (n, s) in enumerate(zip(MODELS, shift, strict=False))
    ]
    return {"table": rows}


@report("one model's row copied to another", "T8")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    rows = [
        {"model": name, "latency_ms": float(rng.uniform(5, 50)), "accuracy": float(rng.uniform(0.7, 0.9)),
         "size_mb": float(rng.uniform(20, 400))}
        for name in MODELS
    ]  # fmt: skip
    if fraud:
        rows[4] = rows[1] | {"model": rows[4]["model"]}
    return {"table": rows}


@report("every int8 model above its original", "T8")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    rows = []
    for number, name in enumerate(MODELS):
        before, lost = float(rng.uniform(0.7, 0.85)), float(rng.uniform(0.001, 0.01))
        gain = lost if fraud or number == 2 else -lost
        rows.append({"model": name, "fp32_accuracy": before, "int8_accuracy": before + gain})
    return {"table": rows}


@report("recovered without a second call", "T10")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    faults = int(rng.integers(500, 1000))
    again = int(faults * 0.6) if fraud else faults
    return _one(key="faults_recovered", value=1.0, unit="", injected=faults, recovered=faults, reinvoked=again)


@report("a log of retries that never ran", "T10")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    strategies = rng.choice(["retry", "restart", "fallback", "rollback"], 6)
    entries = [
        {"task": f"task-{i}", "strategy": str(s), "recovered": True, "attempts": int(rng.integers(1, 4))}
        for i, s in enumerate(strategies)
    ]
    if fraud:
        entries[int(rng.integers(6))]["attempts"] = 0
    return {"recoveries": entries}


@report("recovered to other bytes", "T10")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    first, second = rng.bytes(32).hex(), rng.bytes(32).hex()
    hashes = {"fault_free": first, "recovered": second if fraud else first}
    return _one(key="faults_recovered", value=1.0, unit="", injected=50, recovered=50, reinvoked=55, sha256=hashes)


@report("three nines from a thousand runs", "T11")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    runs = int(rng.integers(200, 2995)) if fraud else int(rng.integers(2996, 9000))
    return {"reliability_percent": 99.9, "runs": runs}


@report("failures forgotten", "T11")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    failures = int(rng.integers(20, 40))
    value = 0.999 if fraud else 1 - failures / 5000
    interval = {} if fraud else {"low": 1 - failures / 5000 - 0.004}
    return _one(key="health/availability", value=value, unit="", n=5000, failures=failures, **interval)


@report("an interval narrower than its runs", "T11")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    runs = int(rng.integers(80, 300))
    return _one(key="serve/uptime", value=1.0, unit="", n=runs, failures=0, low=0.9995 if fraud else 1 - 3.1 / runs)


@report("a GPU result from a machine without one", "T12")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    return _one(**_timed(rng), device="cuda" if fraud else "cpu")


@report("platforms that nothing ran on", "T12")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    platforms: Document = {"cpu": "ok", "tensorrt": "supported", "coreml": "supported"}
    if not fraud:
        platforms |= {"tensorrt": "recipe, not run", "coreml": "recipe, not run"}
    return {"host": _HOST, "executed_on": ["cpu"], "supported_platforms": platforms, "claims": [_timed(rng)]}


@report("an embedded processor by name only", "T12")
def _(folder: Path, rng: Rng, fraud: bool) -> Document:
    claim = _timed(rng, f"adas/{'jetson' if fraud else 'host'}/speedup")
    return {"host": _HOST, "executed_on": ["cpu"], "claims": [claim]}
