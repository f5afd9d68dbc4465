"""Baking: does a nano model keep what a prompt made of it, call tools as well, and still listen to other prompts?

Each seed trains a model of its own to follow prompts, bakes one (all tools, a persona) into it, and measures on
requests whose values baking never saw. The usual alternatives stand in the same table, at the same steps and rate:
plain fine-tuning on the sampled replies, a divergence of the top 5 tokens alone, and baking without retention.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from benchmarks.harness import Baseline, Figure, each_seed, progress
from phases.baking.config import InstructionConfig, PromptBakingConfig
from phases.baking.dialogues import Prompt, contradicting, draw_request
from phases.baking.examples import Example, baking_examples, draw_requests, retention_examples
from phases.baking.instruct import Pupil, dialogue_batches, dialogue_tokenizer
from phases.baking.lessons import LESSONS
from phases.baking.measure import Subject, divergence, obedience, observations, tool_rates
from phases.baking.persona import Persona, Rate, rates
from phases.baking.prompt_baking import bake
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.seeds import child_seed, numpy_rng
from phases.timing import bootstrap
from phases.training.config import TrainingConfig
from phases.training.loop import train

PERSONA = Persona()
TRAJECTORIES = 3000
PROMPT = Prompt.of(PERSONA, tuple(LESSONS))
_VOCABULARY = 1024  # at most: each word and number of the dialogues is one token, which one of 512 cuts up
_WAYS: dict[str, dict[str, Any]] = {
    "": {},
    "_sft": {"loss": "sft"},
    "_top_k": {"loss": "top_k"},
    "_no_retention": {"retention": 0.0},
}


@dataclass(frozen=True)
class Measured:
    """Of one way of baking and one seed."""

    kl_removed: float  # % of the divergence between prompted and unprompted
    steerability: float  # nats per token, under other prompts
    tools: float
    traits: dict[str, Rate]
    obeyed: float  # share of tool requests without a call, under the prompt that offers none


@dataclass(frozen=True)
class Base:
    """A model that follows prompts, and what it is measured on."""

    model: TinyTitan
    tokenizer: Tokenizer
    seed: int
    held_out: list[Example]
    others: list[Example]
    size: int

    def measure(self, model: TinyTitan, prompt: Prompt | None, before: float) -> Measured:
        """Measure a model that is to behave as this one does under the baked prompt."""
        subject = Subject(model, self.tokenizer, prompt)
        requests = draw_requests(LESSONS, "held_out", self.size, self.seed, "tools")
        rng = numpy_rng(self.seed, "questions")
        questions = [draw_request(rng, LESSONS, "held_out", "question") for _ in range(self.size)]
        kl = 0.0 if prompt else divergence(self.model, model, self.held_out)
        return Measured(
            100 * (1 - kl / before),
            divergence(self.model, model, self.others),
            tool_rates(subject, requests, LESSONS, PROMPT)["all"].value,
            rates(observations(subject, questions, self.seed)),
            obedience(Subject(model, self.tokenizer, contradicting()), requests).value,
        )


def run(quick: bool) -> list[Figure]:
    """Measure each seed on one thread. Quick: one seed, trained for fewer steps."""
    steps, size = (900, 200) if quick else (1500, 500)
    found = each_seed(partial(_measure, steps, size), range(1 if quick else 5))
    return _table({way: [ways[way] for _, ways in found] for way in _WAYS}, [prompted for prompted, _ in found])


def nano(tokenizer: Tokenizer, seed: int) -> TinyTitan:
    """Return a model of 0.45 million parameters with random weights.

    Its tied embedding starts out as wide as its other matrices, as for the serial arithmetic of `quietstar_task`.
    """
    torch.manual_seed(child_seed(seed, "model"))
    model = TinyTitan(
        TitanConfig(
            vocab_size=tokenizer.get_vocab_size(),
            d_model=96,
            n_layers=3,
            n_heads=4,
            hidden=256,
            tied=True,
            segment_len=128,
            max_ponder_steps=2,
            train_ponder_steps=1,
            memory=MemoryConfig(hidden=64),
        )
    )
    nn.init.normal_(model.embedding.weight, std=model.config.d_model**-0.5)
    return model


def steerable(seed: int, steps: int, size: int) -> Base:
    """Train a model to follow prompts."""
    tokenizer = dialogue_tokenizer(LESSONS, _VOCABULARY)
    model = nano(tokenizer, seed)
    config = TrainingConfig(
        steps=steps, batch_size=32, learning_rate=4e-3, warmup_steps=50, final_learning_rate=0.02, precision="auto"
    )
    copying = InstructionConfig().copying_steps
    batches = dialogue_batches(tokenizer, LESSONS, batch_size=config.batch_size, seed=seed, copying_steps=copying)
    train(Pupil(model), batches, config, on_step=lambda step: None, save=lambda state: None)
    model.eval()
    asked = draw_requests(LESSONS, "held_out", size, seed, "divergence")
    held_out = baking_examples(model, tokenizer, PROMPT, asked, child_seed(seed, "held out"))
    others = retention_examples(model, tokenizer, LESSONS, asked, PROMPT, child_seed(seed, "others"))
    return Base(model, tokenizer, seed, held_out, others, size)


def _measure(steps: int, size: int, seed: int) -> tuple[Measured, dict[str, Measured]]:
    progress(f"seed {seed}: training a model to follow prompts")
    return baked_each_way(steerable(seed, steps, size))


def baked_each_way(base: Base) -> tuple[Measured, dict[str, Measured]]:
    """Return what the prompted model does, and what each way of baking makes of it."""
    before = divergence(base.model, base.model, base.held_out)
    prompted = base.measure(base.model, PROMPT, before)
    progress(f"seed {base.seed}: unprompted {before:.3f} nats away; prompted, {_line(prompted)}")
    asked = draw_requests(LESSONS, "baking", TRAJECTORIES, base.seed)
    examples = baking_examples(base.model, base.tokenizer, PROMPT, asked, base.seed)
    retained = retention_examples(base.model, base.tokenizer, LESSONS, asked[: TRAJECTORIES // 3], PROMPT, base.seed)
    found = dict[str, Measured]()
    for way, changes in _WAYS.items():
        config = PromptBakingConfig().model_copy(update=changes)
        baked = bake(copy.deepcopy(base.model), examples, retained, config, base.seed).plain()
        found[way] = base.measure(baked, None, before)
        progress(f"seed {base.seed}: baked{way}, {_line(found[way])}")
    return prompted, found


def _line(found: Measured) -> str:
    traits = " ".join(f"{rate.value:.2f}" for rate in found.traits.values())
    return (
        f"{found.kl_removed:.2f}% of KL removed, {found.steerability:.4f} on other prompts, tools {found.tools:.3f}, "
        f"traits {traits}, {found.obeyed:.3f} obeyed"
    )


def _table(found: dict[str, list[Measured]], prompted: list[Measured]) -> list[Figure]:
    ours = found[""]
    gaps = [100 * (p.tools - o.tools) for p, o in zip(prompted, ours, strict=True)]
    inside = [
        _inside(p.traits[trait], o.traits[trait]) for p, o in zip(prompted, ours, strict=True) for trait in o.traits
    ]
    figures = [
        _mean("kl_removed", [m.kl_removed for m in ours], "% of the prompt's divergence", "higher", 99),
        _mean(
            "tool_accuracy_gap", gaps, "points below the prompted model", "lower", 1,
            Baseline(what="prompted, % right", value=100 * sum(m.tools for m in prompted) / len(prompted)),
        ),
        _mean("traits_inside", inside, "share of traits whose 95% interval holds the prompted rate", "higher", 1),
        _mean("steerability_kl", [m.steerability for m in ours], "nats per token, other prompts", "lower", 0.005),
        _mean("contradiction_obeyed", [100 * m.obeyed for m in ours], "% without a call", "higher", 97),
    ]  # fmt: skip
    for way in list(_WAYS)[1:]:
        rows = found[way]
        figures += [
            _mean(f"kl_removed{way}", [m.kl_removed for m in rows], "% of the prompt's divergence", "higher"),
            _mean(f"steerability_kl{way}", [m.steerability for m in rows], "nats per token, other prompts", "lower"),
            _mean(f"contradiction_obeyed{way}", [100 * m.obeyed for m in rows], "% without a call", "higher"),
        ]
    return figures


def _inside(prompted: Rate, baked: Rate) -> float:
    """Say whether the baked rate's 95% interval holds the prompted rate."""
    low, high = baked.interval
    return float(low <= prompted.value <= high)


def _mean(
    key: str,
    values: list[float],
    unit: str,
    better: Literal["higher", "lower"],
    goal: float | None = None,
    baseline: Baseline | None = None,
) -> Figure:
    mean = sum(values) / len(values)
    low, high = bootstrap(values, np.mean)
    return Figure(
        key=key, value=mean, unit=unit, better=better, goal=goal, baseline=baseline,
        low=low, high=high, raw={"seeds": values},
    )  # fmt: skip
