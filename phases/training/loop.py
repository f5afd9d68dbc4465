"""The training loop: fused AdamW or Muon, warm-up and cosine, clipping, bf16 autocast where it is faster, exact resume.

It knows nothing of where batches come from or where checkpoints go. `batches(step)` must be a pure function; then a run
that is stopped after any step and restored continues with the same bits, on the same machine and number of threads.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phases.errors import NumericalError
from phases.training.config import Precision, TrainingConfig
from phases.training.schedule import learning_rate
from phases.training.state import TrainState


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did. `metrics` are the model's own, averaged over the forward passes."""

    step: int  # steps done, this one included
    loss: float  # nats per token
    grad_norm: float  # before clipping
    learning_rate: float
    tokens: int
    seconds: float
    metrics: dict[str, float]


def train(
    model: nn.Module,
    batches: Callable[[int], Tensor],
    config: TrainingConfig,
    *,
    state: TrainState | None = None,
    on_step: Callable[[StepReport], None],
    save: Callable[[TrainState], None],
) -> None:
    """Train `model` in place up to `config.steps`, from `state` where there is one.

    `model.loss(tokens)` takes (B, T + 1) token ids and returns a scalar and metrics. `batches(step)` returns
    (batch_size * accumulate, T + 1). With Muon, `model.hidden_matrices()` returns the parameters that it moves. `save`
    gets the state every `checkpoint_every` steps, never after the last.
    Raises `NumericalError` naming step and quantity where a loss or gradient is not finite.
    """
    device = next(model.parameters()).device
    precision = state.precision if state else resolve_precision(config, device)
    optimizers = make_optimizers(model, config)
    if state is not None:
        state.restore(model, optimizers)
    model.train()
    for step in range(state.step if state else 0, config.steps):
        on_step(_step(model, optimizers, batches(step).to(device), step, config, precision))
        done = step + 1
        if done % config.checkpoint_every == 0 and done < config.steps:
            save(TrainState.capture(done, precision, model, optimizers))


def make_optimizers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Return a fused AdamW that decays matrices and leaves vectors alone, and Muon for what it is to move.

    Muon's updates are scaled to the size of AdamW's, so both share the learning rate (Liu et al. 2025, eq. 4).
    """
    hidden = _hidden_matrices(model) if config.optimizer == "muon" else []
    moved = set(hidden)
    others = [p for p in model.parameters() if p not in moved]
    matrices, vectors = [p for p in others if p.dim() >= 2], [p for p in others if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    if not hidden:
        return [adamw]
    decay, rate = config.weight_decay, config.learning_rate
    return [adamw, torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def resolve_precision(config: TrainingConfig, device: torch.device) -> Precision:
    """Return what `auto` means here: bf16 on a GPU or a CPU with units for it, fp32 elsewhere."""
    if config.precision != "auto":
        return config.precision
    has_units = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_units else "fp32"


def _step(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    rows: Tensor,
    step: int,
    config: TrainingConfig,
    precision: Precision,
) -> StepReport:
    start = time.perf_counter()
    rate = learning_rate(step, config)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    total, sums = 0.0, dict[str, float]()
    for part in rows.split(config.batch_size):
        with torch.autocast(part.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, metrics = _loss(model, part)
        (loss / config.accumulate).backward()
        total += float(loss.detach()) / config.accumulate
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value) / config.accumulate
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip))
    for what, value in (("loss", total), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise NumericalError(f"step {step}: {what} is {value}; lower learning_rate or resume from a checkpoint")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    tokens = rows.shape[0] * (rows.shape[1] - 1)
    return StepReport(step + 1, total, norm, rate, tokens, time.perf_counter() - start, sums)


def _hidden_matrices(model: Any) -> list[nn.Parameter]:
    return list(model.hidden_matrices())


def _loss(model: Any, part: Tensor) -> tuple[Tensor, dict[str, Any]]:
    loss, metrics = model.loss(part)
    return loss, metrics
