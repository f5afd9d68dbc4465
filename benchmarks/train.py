"""Training throughput and memory: our loop against the plainest PyTorch loop on the same model and data.

The plain loop forms all logits, takes `F.cross_entropy`, and steps an AdamW that loops over parameters; it runs in fp32
and again under bf16 autocast. It uses the same schedule, clipping and weight decay, so that after 200 steps both must
have learned the same. One repetition is a whole run of a few steps with a fresh optimiser, on one thread.
"""

import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Baseline, Figure, interleave, peak_rss, progress, ratio_figure, torch_threads
from phases.cognate import titan
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.timing import bootstrap
from phases.training.config import Precision, TrainingConfig
from phases.training.loop import StepReport, resolve_precision, train
from phases.training.schedule import learning_rate

Arm = Literal["ours", "plain fp32", "plain bf16"]
ROWS, LENGTH = {"25m": 8, "nano": 16}, {"25m": 512, "nano": 256}  # nano as in its preset; 25m a quarter of its batch
AGREEMENT_STEPS, AGREEMENT_WINDOW = 200, 20


def run(quick: bool) -> list[Figure]:
    """Measure speed at 25M and nano, agreement of the losses at nano, and peak memory at 25M."""
    precision = resolve_precision(TrainingConfig(), torch.device("cpu"))
    progress(f"our loop runs in {precision} here")
    repetitions, has_units = 3 if quick else 7, precision == "bf16"
    large = _seconds("25m", repetitions, steps=1 if quick else 2)
    small = _seconds("nano", repetitions, steps=4)
    large_work = ROWS["25m"] * LENGTH["25m"] * (1 if quick else 2)
    tokens = "tokens per CPU second"
    return [
        ratio_figure(
            "tokens_ratio_fp32_25m",
            large,
            "ours",
            "plain fp32",
            goal=2.8 if has_units else None,
            work=large_work,
            what=f"plain fp32 loop, {tokens}",
        ),
        ratio_figure(
            "tokens_ratio_bf16_25m",
            large,
            "ours",
            "plain bf16",
            goal=1.2 if has_units else None,
            work=large_work,
            what=f"plain loop with bf16 autocast, {tokens}",
        ),
        ratio_figure(
            "tokens_ratio_fp32_nano",
            small,
            "ours",
            "plain fp32",
            goal=1.3 if has_units else None,
            work=4 * ROWS["nano"] * LENGTH["nano"],
            what=f"plain fp32 loop, {tokens}",
        ),
        _flops_share(large["ours"], large_work, precision),
        _peak_rss_ratio(),
        _loss_gap(),
    ]


def _seconds(size: str, repetitions: int, steps: int) -> dict[str, list[float]]:
    progress(f"{size}: {steps} steps of {ROWS[size]} x {LENGTH[size]} tokens")
    config = _config(size, steps)
    vocabulary = PRESETS[size].vocab_size
    batch = torch.randint(0, vocabulary, (ROWS[size], LENGTH[size] + 1), generator=torch.Generator().manual_seed(0))

    def arm(name: Arm) -> Callable[[], object]:
        model = _model(size)
        return lambda: _train(name, model, lambda step: batch, config)

    return interleave({name: arm(name) for name in ("ours", "plain fp32", "plain bf16")}, repetitions)


def _config(size: str, steps: int) -> TrainingConfig:
    return TrainingConfig(
        steps=steps, batch_size=ROWS[size], seq_len=LENGTH[size], learning_rate=1e-3, checkpoint_every=10**9
    )


def _model(size: str) -> TinyTitan:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyTitan(PRESETS[size])


def _train(arm: Arm, model: TinyTitan, batches: Callable[[int], Tensor], config: TrainingConfig) -> list[float]:
    """Train `model` in place and return the loss of each step."""
    if arm == "ours":
        reports: list[StepReport] = []
        train(model, batches, config, on_step=reports.append, save=lambda state: None)
        return [report.loss for report in reports]
    with _full_logits():
        return _plain_loop(model, batches, config, "bf16" if arm == "plain bf16" else "fp32")


def _plain_loop(
    model: TinyTitan, batches: Callable[[int], Tensor], config: TrainingConfig, precision: Precision
) -> list[float]:
    """Train as a textbook does."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, foreach=False, fused=False)
    losses = []
    model.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = model.loss(batches(step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


@contextmanager
def _full_logits() -> Iterator[None]:
    """Have the model take the cross-entropy of all its logits at once."""

    def full(hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none").float()
        return (losses * token_weights).sum(), losses.detach()

    with mock.patch.object(titan, "linear_cross_entropy", full):
        yield


def _flops_share(seconds: list[float], tokens: int, precision: Precision) -> Figure:
    """Return the model's FLOPs (nothing computed twice counts) per CPU second as a share of the matmul peak."""
    rows = torch.zeros(1, LENGTH["25m"] + 1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, _full_logits():
        _model("25m").loss(rows)[0].backward()
    per_token = counter.get_total_flops() / LENGTH["25m"]
    peak = _matmul_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
    shares = [per_token * tokens / spent / peak for spent in seconds]
    low, high = bootstrap(shares)
    return Figure(
        key="flops_share",
        value=statistics.median(shares),
        unit="of peak",
        better="higher",
        baseline=Baseline(what=f"best {precision} product of two 2048 x 2048 matrices, FLOP per second", value=peak),
        low=low,
        high=high,
        raw={"share": shares},
    )


def _matmul_peak(dtype: torch.dtype, size: int = 2048) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = torch.empty_like(a)
    best = float("inf")
    with torch_threads(1):
        for _ in range(10):
            start = time.thread_time()
            torch.mm(a, b, out=out)
            best = min(best, time.thread_time() - start)
    return 2 * size**3 / best


def _peak_rss_ratio() -> Figure:
    peaks = {name: float(peak_rss("benchmarks.train:few_steps", name)) for name in ("ours", "plain fp32")}
    progress("peak memory: " + "  ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items()))
    return Figure(
        key="peak_rss_ratio",
        value=peaks["ours"] / peaks["plain fp32"],
        unit="x",
        better="lower",
        goal=0.6,
        baseline=Baseline(what="plain fp32 loop, bytes of the whole process", value=peaks["plain fp32"]),
        raw={name: [peak] for name, peak in peaks.items()},
    )


def few_steps(arm: Arm) -> None:
    """Train 25M for three steps; the process that measures peak memory calls this."""
    torch.set_num_threads(1)
    batch = torch.zeros(ROWS["25m"], LENGTH["25m"] + 1, dtype=torch.int64).random_(0, 32_000)
    _train(arm, _model("25m"), lambda step: batch, _config("25m", 3))


def _loss_gap() -> Figure:
    """Return by how much the arms' mean losses over the last of 200 steps on real bytes differ."""
    config = _config("nano", AGREEMENT_STEPS).model_copy(update={"batch_size": 4, "seq_len": 128})
    losses = {}
    for name in ("ours", "plain fp32"):
        progress(f"nano, {AGREEMENT_STEPS} steps: {name}")
        with torch_threads(1):
            losses[name] = _train(name, _model("nano"), _byte_rows, config)
    last = {name: statistics.mean(series[-AGREEMENT_WINDOW:]) for name, series in losses.items()}
    return Figure(
        key="loss_gap",
        value=abs(last["ours"] - last["plain fp32"]),
        unit="nats",
        better="lower",
        goal=0.01,
        baseline=Baseline(what="plain fp32 loop, nats per byte after 200 steps at nano", value=last["plain fp32"]),
        raw=losses,
    )


def _byte_rows(step: int, rows: int = 4, length: int = 128) -> Tensor:
    """Return rows of bytes (4, 129) of the standard library's source as a function of the step."""
    text = np.frombuffer((Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes(), dtype=np.uint8)
    starts = np.random.default_rng(step).integers(0, len(text) - length, rows)
    return torch.from_numpy(np.stack([text[start : start + length + 1] for start in starts]).astype(np.int64))
