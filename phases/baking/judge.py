"""What the baked model does, measured from the files of the run, and what of the agents' evidence does not hold.

The prompted model before baking is the standard: tools and traits are compared with it, on values that baking never
saw, and other prompts must work on the baked model as they did before. Measurements are probes, so `forge verify` finds
them again.
"""

from typing import Any

from phases import storage
from phases.baking.config import BakingConfig
from phases.baking.dialogues import contradicting, draw_request
from phases.baking.evidence import FOLDER, Evidence, keep, kept
from phases.baking.examples import baking_examples, draw_requests, retention_examples
from phases.baking.measure import (
    Subject,
    constraint_rate,
    divergence,
    identity_rate,
    obedience,
    observations,
    tool_rates,
)  # fmt: skip
from phases.baking.persona import TRAITS, coherence, rates
from phases.baking.phase import MODEL, STEERABLE, Order
from phases.baking.validation.audit import audit_apart
from phases.seeds import child_seed, numpy_rng

_FEW = 24  # conversations for the identity


def behaviour(order: Order) -> dict[str, Any]:
    """Return what the baked and the prompted model do, with Wilson intervals."""
    steerable, baked, prompt = order.open(STEERABLE), order.open(MODEL), order.prompt
    size, lessons = order.config.evaluation, order.lessons
    ours = Subject(baked.model, baked.tokenizer)
    theirs = Subject(steerable.model, steerable.tokenizer, prompt)
    requests = draw_requests(lessons, "held_out", size.tool_requests, order.seed, "tools")
    tools = {name: tool_rates(subject, requests, lessons, prompt) for name, subject in _named(ours, theirs)}
    subjects = [request for request in requests if request.kind == "subject"]
    never = tuple(order.config.persona.never)
    calls = [len(request.calls) for request in requests]
    return {
        "divergence": divergences(order),
        "tools": {name: {kind: rate.to_json() for kind, rate in found.items()} for name, found in tools.items()},
        "persona": {name: _persona(order, subject) for name, subject in _named(ours, theirs)},
        "constraints": constraint_rate(ours, subjects, never).to_json(),
        "identity": identity_rate(ours, requests[:_FEW], order.config.persona.name).to_json(),
        "obeys_contradiction": obedience(Subject(baked.model, baked.tokenizer, contradicting()), requests).to_json(),
        "prompt_tokens_saved": len(baked.tokenizer.encode(prompt.text).ids) + 2,
        "calls_per_request": sum(calls) / len(calls),
    }


def _named(ours: Subject, theirs: Subject) -> list[tuple[str, Subject]]:
    return [("baked", ours), ("prompted", theirs)]


def divergences(order: Order) -> dict[str, float]:
    """Return nats per token on held-out requests: before baking, after, and after under other prompts."""
    before, baked = order.open(STEERABLE), order.open(MODEL).model
    asked = draw_requests(order.lessons, "held_out", order.config.evaluation.dialogues, order.seed, "divergence")
    held_out = baking_examples(before.model, before.tokenizer, order.prompt, asked, child_seed(order.seed, "held out"))
    others = retention_examples(
        before.model, before.tokenizer, order.lessons, asked, order.prompt, child_seed(order.seed, "others")
    )
    return {
        "before": divergence(before.model, before.model, held_out),
        "after": divergence(before.model, baked, held_out),
        "other_prompts": divergence(before.model, baked, others),
    }


def _persona(order: Order, subject: Subject) -> dict[str, Any]:
    rng, count = numpy_rng(order.seed, "questions"), order.config.evaluation.dialogues
    questions = [draw_request(rng, order.lessons, "held_out", "question") for _ in range(count)]
    seen = observations(subject, questions, order.seed)
    later = observations(subject, questions, order.seed, turn=2)
    found = rates(seen)
    return {trait: found[trait].to_json() for trait in TRAITS} | {"coherence": coherence([*seen, *later])}


def gates(measured: dict[str, Any], config: BakingConfig) -> dict[str, str]:
    """Return the gates that a model has not passed, and why; empty where it is ready for the next phase."""
    ours, theirs = (measured["tools"][who]["all"]["rate"] for who in ("baked", "prompted"))
    failed = dict[str, str]()
    if ours < config.least_retention * theirs:
        failed["tool_accuracy"] = f"{ours:.3f} of the prompted model's {theirs:.3f}"
    kl = measured["divergence"]
    if not kl["after"] < kl["before"]:
        failed["divergence"] = f"{kl['after']:.4f} nats from the prompted model, {kl['before']:.4f} before"
    return failed


def validate(order: Order) -> Evidence:
    """Measure the model on disk against the prompted one. Gates that it fails are listed as rejected."""
    measured = behaviour(order)
    evidence = Evidence(
        agent="QualityValidator",
        step="QualityValidation",
        work="validate",
        measured=measured,
        rejected=gates(measured, order.config),
    )
    return keep(order.run, evidence)


def audit(order: Order) -> Evidence:
    """Compare the agents' files with their evidence, and audit model and package in a fresh process."""
    evidence, rejected, checked = kept(order.run), dict[str, str](), dict[str, int]()
    for each in evidence:
        for path, digest in each.files.items():
            if storage.sha256(order.path(path)) != digest:
                rejected[f"{each.agent}: {path}"] = "not the file that the evidence is about"
    for path in (f"{FOLDER}/optimised", MODEL):
        report = audit_apart(storage.local_folder(order.path(path)))
        checked |= {f"{path}: {what}": count for what, count in report.checked.items()}
        rejected |= {f"{path}: {finding.test} {finding.where}": finding.why for finding in report.findings}
    measured = {"evidence": len(evidence), "checked": checked}
    judged = Evidence(
        agent="QualityValidator", step="Phase7Preparation", work="audit", measured=measured, rejected=rejected
    )
    return keep(order.run, judged)
