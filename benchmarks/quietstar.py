"""Quiet-STaR: is the attention of parallel thoughts exact and fast, and do thoughts help where they can?

Exactness is measured against a loop over positions that reads each prefix with its thought as plain text; speed against
the dense mask of the published code, in CPU time. Whether thoughts help is asked on serial arithmetic, where useful
ones are in the prior (`quietstar_gain.py`), and on real text (`quietstar_text.py`).
"""

import os
import statistics
import time

import torch
from torch import Tensor

from benchmarks import quietstar_gain, quietstar_text
from benchmarks.harness import Figure, interleave, progress, ratio_figure, torch_threads
from benchmarks.quietstar_dense import think_densely
from phases.cognate.memory import MemoryConfig
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.quietstar import sources
from phases.quietstar.chain import START_ID
from phases.quietstar.config import SamplingConfig, ThoughtConfig
from phases.quietstar.thinker import Thinker
from phases.quietstar.window import Stage, Thoughts
from phases.seeds import torch_rng
from phases.training.config import TrainingConfig
from phases.training.loop import resolve_precision


def run(quick: bool) -> list[Figure]:
    """Measure on one thread. Quick: texts of 192 tokens, fewer random cases, one seed of the task."""
    with torch_threads(1):
        timed = speed(192, 8, 2) if quick else speed(512, 16, 3)
        seeds = range(1 if quick else 5)
        found = [*exactness(5 if quick else 30), leak(), *timed]
        found += [*quietstar_gain.figures(seeds, quick), *quietstar_text.figures(seeds, quick)]
    return [*found, latency(1 if quick else 3)]


def speed_model(segment_len: int) -> TinyTitan:
    """Return a model of the 25M preset's width with four layers and a vocabulary of 2,048, one ponder step."""
    torch.manual_seed(0)
    config = TitanConfig(
        vocab_size=2048,
        d_model=216,
        n_layers=4,
        n_heads=4,
        hidden=1188,
        tied=True,
        segment_len=segment_len,
        train_ponder_steps=1,
        memory=MemoryConfig(hidden=16),
    )
    return TinyTitan(config).eval()


def exactness(cases: int) -> list[Figure]:
    """Compare logits and gradients with the loop at random lengths, thought lengths, places and padding."""
    logits, gradients = list[float](), list[float]()
    for case in range(cases):
        generator = torch_rng(case, "exactness")
        length, new = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 40), (1, 9)))
        model = speed_model(64)
        tokens = torch.randint(16, 2048, (2, length + 1), generator=generator)
        padding = int(torch.randint(0, length // 2 + 1, (), generator=generator))
        tokens[1, length + 1 - padding :] = 0
        orders = [torch.randperm(length - padding, generator=generator) for _ in tokens]
        positions = torch.stack([order[:4].sort().values for order in orders])
        thoughts = torch.randint(16, 2048, (2, positions.shape[1], new), generator=generator)
        found, expected = (_compared(model, path(model, tokens, positions, thoughts)) for path in (_parallel, _loop))
        logits.append(float((found[0] - expected[0]).abs().max()))
        pairs = zip(found[1], expected[1], strict=True)
        gradients.append(max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in pairs))
        progress(f"exactness {case + 1}/{cases}: logits {logits[-1]:.1e}, gradients {gradients[-1]:.1e}")
    return [
        Figure(key=key, value=max(series), unit=unit, better="lower", goal=1e-5, raw={"cases": series})
        for key, series, unit in (
            ("exact_logits", logits, "largest difference"),
            ("exact_grads", gradients, "largest difference, relative to the tensor's largest gradient"),
        )
    ]


def _compared(model: TinyTitan, outputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and the parameters' gradients of a random sum of them."""
    logits = outputs @ model.head_weight.T
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((logits * weights).mean(), parameters, allow_unused=True)
    return logits.detach(), [gradient for gradient in gradients if gradient is not None]


def _parallel(model: TinyTitan, tokens: Tensor, positions: Tensor, thoughts: Tensor) -> Tensor:
    (segment,) = model.segments(tokens)
    window = Thoughts(Stage.of_segment(segment, model.config.segment_len), positions)
    return window.read(model, model.embedding(thoughts))


def _loop(model: TinyTitan, tokens: Tensor, positions: Tensor, thoughts: Tensor) -> Tensor:
    rows = []
    for row, places in enumerate(positions.tolist()):
        parts = []
        for place, thought in zip(places, thoughts[row], strict=True):
            text = torch.cat([tokens[row, : place + 1], thought, thought[:1]]).unsqueeze(0)
            (segment,) = model.segments(text)
            parts.append(segment.outputs[0, place + 1 :])
        rows.append(torch.stack(parts))
    return torch.stack(rows)


@torch.no_grad()
def leak() -> Figure:
    """Count outputs that change in any bit where a later token or another position's thought is changed."""
    model, generator = speed_model(64), torch_rng(0, "leak")
    tokens = torch.randint(16, 2048, (2, 49), generator=generator)
    positions = torch.arange(48).expand(2, -1)
    thoughts = torch.randint(16, 2048, (2, 48, 6), generator=generator)
    before, changed = _parallel(model, tokens, positions, thoughts), 0
    for place in range(0, 48, 4):
        later, other = tokens.clone(), thoughts.clone()
        later[:, place] = 16 + (later[:, place] + 1) % 2000
        other[:, place] = 16 + (other[:, place] + 1) % 2000
        changed += int((_parallel(model, later, positions, thoughts)[:, :place] != before[:, :place]).sum())
        rest = torch.arange(48) != place
        changed += int((_parallel(model, tokens, positions, other)[:, rest] != before[:, rest]).sum())
    return Figure(key="leak", value=changed, unit="outputs that change", better="lower", goal=0)


def speed(length: int, new: int, repetitions: int) -> list[Figure]:
    """Time thoughts of `new` tokens behind every token of a text, and behind a quarter of them."""
    model, generator = speed_model(length), torch_rng(0, "speed")
    tokens = torch.randint(16, 2048, (1, length + 1), generator=generator)
    everywhere, quarter = torch.arange(length).unsqueeze(0), torch.arange(0, length, 4).unsqueeze(0)
    thinker = Thinker(model, ThoughtConfig(length=min(new, 64)))

    def stage() -> Stage:
        (segment,) = model.segments(tokens)
        return Stage.of_segment(segment, length)

    def ours(positions: Tensor) -> None:
        with torch.no_grad():
            sources.think(thinker, stage(), positions, new, SamplingConfig())

    def dense() -> None:
        with torch.no_grad():
            think_densely(model, stage(), everywhere, new)

    def ours_trained() -> None:
        with torch.no_grad():
            thoughts = sources.think(thinker, stage(), everywhere, new, SamplingConfig())
        chain = torch.cat([torch.full_like(thoughts[:, :, :1], START_ID), thoughts[:, :, :-1]], dim=2)
        Thoughts(stage(), everywhere).read(model, thinker.embed(chain)).square().mean().backward()
        model.zero_grad()

    def dense_trained() -> None:
        think_densely(model, stage(), everywhere, new)[1].square().mean().backward()
        model.zero_grad()

    candidates = {"ours": lambda: ours(everywhere), "quarter": lambda: ours(quarter), "dense": dense}
    seconds = interleave(candidates, repetitions)
    trained = interleave({"ours": ours_trained, "dense": dense_trained}, repetitions, warmup=0)
    work, what = float(length * new), "dense mask at all places, thought tokens per CPU second"
    return [
        ratio_figure(f"speed_vs_dense_{length}", seconds, "ours", "dense", goal=2.5, work=work, what=what),
        ratio_figure("speed_vs_dense_25pct", seconds, "quarter", "dense", goal=7.0, work=work, what=what),
        ratio_figure(f"speed_train_{length}", trained, "ours", "dense", goal=3.0, work=work, what=what),
    ]


@torch.no_grad()
def latency(repetitions: int) -> Figure:
    """Time what the documents promise in 2 s: 4 texts, 20 places each, 4 thoughts of 32 tokens, 25 M parameters.

    Wall time on all cores, in bf16 where the processor has units for it, after the texts have been read.
    """
    torch.manual_seed(0)
    model, generator = TinyTitan(PRESETS["25m"]).eval(), torch_rng(0, "latency")
    thinker = Thinker(model, ThoughtConfig(length=32))
    tokens = torch.randint(16, model.config.vocab_size, (4, 65), generator=generator)
    positions = torch.arange(4, 64, 3).repeat_interleave(4).expand(4, -1)
    precision, seconds = resolve_precision(TrainingConfig(), torch.device("cpu")), list[float]()
    with torch_threads(os.cpu_count() or 1), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        (segment,) = model.segments(tokens)
        stage = Stage.of_segment(segment, model.config.segment_len)
        for _ in range(1 + repetitions):
            start = time.perf_counter()
            sources.think(thinker, stage, positions, 32, SamplingConfig())
            seconds.append(time.perf_counter() - start)
    return Figure(
        key="thinking_seconds",
        value=statistics.median(seconds[1:]),
        unit=f"s for 4 x 20 x 4 thoughts of 32 tokens, 25 M parameters, {precision}",
        better="lower",
        goal=2.0,
        raw={"repetitions": seconds[1:]},
    )
