"""The result of phase 6: claims with their probes, the documented fields and files, and what the agents left."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from phases import modeldir, storage
from phases.baking.evidence import AGENTS, FOLDER, STEPS, Evidence, kept, require_complete
from phases.baking.persona import TRAITS
from phases.baking.phase import MODEL, STATE, STEERABLE, Order
from phases.baking.probes import behaviour_probe
from phases.baking.tuning import PACKAGE
from phases.baking.validation.availability import lower_bound, runs_needed
from phases.contract import Baseline, Claim, PhaseResult
from phases.probes import RunFiles, claim, measure
from phases.quietstar.loading import can_think

SUMMARY, COORDINATION, RECOVERY = "baking_summary.json", "agent_coordination_log.json", "error_recovery_log.json"
RELIABILITY = "baking/reliability_percent"
_DOCUMENTED = {"helpfulness": "helpfulness_score", "creativity": "creativity_score", "precision": "precision_score"}


def finish(
    order: Order, start: datetime, coordination: Sequence[Mapping[str, Any]], recoveries: Sequence[Mapping[str, Any]]
) -> PhaseResult:
    """Measure the claims, write the documented files and return the result.

    `coordination` and `recoveries` are what the run's journal says of the phase. Raises `ArtifactError` where an agent
    has left no evidence: then nothing is known of its work.
    """
    evidence = kept(order.run)
    require_complete(evidence)
    files = RunFiles(order.run)
    claims = _claims(files, order)
    end = datetime.now(start.tzinfo)
    minutes = (end - start).total_seconds() / 60
    refused = {f"{each.agent}: {what}": why for each in evidence if _gates(each) for what, why in each.rejected.items()}
    reliable = reliability(coordination, recoveries)
    metrics = _metrics(claims, order, evidence, minutes, reliable, not refused)
    written: dict[str, Any] = {
        SUMMARY: _summary(order, evidence, metrics, claims, refused) | {"results": [reliable]},
        COORDINATION: list(coordination),
        RECOVERY: list(recoveries),
    }
    for name, value in written.items():
        storage.write_json(order.path(f"{FOLDER}/{name}"), value)
    return PhaseResult(
        success=True,
        phase="baking",
        model=modeldir.open_ref(order.path(MODEL)).model_copy(update={"uri": MODEL}),
        models={"steerable": modeldir.open_ref(order.path(STEERABLE)).model_copy(update={"uri": STEERABLE})},
        metrics=metrics,
        claims=tuple(claims),
        artifacts={"baked_model": STATE, "optimised": PACKAGE} | {name: f"{FOLDER}/{name}" for name in written},
        config=order.config.model_dump(mode="json") | {"seed": order.seed},
        degraded=tuple(f"{what}: {why}" for what, why in refused.items()),
        notes=_notes(order),
        start_time=start,
        end_time=end,
        duration_seconds=(end - start).total_seconds(),
    )


def _notes(order: Order) -> tuple[str, ...]:
    thinks = can_think(order.path(order.parent.uri))
    return (f"The baked model does not think; {order.parent.uri}, which it was made of, does.",) if thinks else ()


def _gates(evidence: Evidence) -> bool:
    """Say whether what is rejected speaks against the model; other agents reject what they have then left out."""
    return evidence.agent == "QualityValidator"


def _claims(files: RunFiles, order: Order) -> list[Claim]:
    prompted = {
        quantity: Baseline(what="prompted, before baking", value=measure(files, probe).value)
        for quantity in ("tool_accuracy", "persona_coherence", *TRAITS)
        for probe in [behaviour_probe(order, quantity, "prompted")]
    }
    known: list[tuple[str, str, str, Literal["higher", "lower"], float | None]] = [
        ("tool_accuracy", "tool_accuracy", "of held-out requests", "higher", None),
        ("persona_coherence", "persona_coherence", "1 - largest distance of a context", "higher", None),
        *((_DOCUMENTED[trait], trait, "of held-out questions", "higher", None) for trait in TRAITS),
        ("kl_removed", "kl_removed", "% of the prompt's divergence", "higher", 99.0),
        ("steerability_kl", "other_prompts", "nats per token under other prompts", "lower", 0.005),
    ]
    return [
        claim(
            files,
            f"baking/{key}",
            behaviour_probe(order, quantity),
            unit=unit,
            better=better,
            tolerance=1e-3 if quantity != "kl_removed" else 0.1,
            baseline=prompted.get(quantity),
            target=target,
        )
        for key, quantity, unit, better, target in known
    ]


def reliability(coordination: Sequence[Mapping[str, Any]], recoveries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the phase's tasks show of its reliability, with the sample that it rests on.

    A run is an attempt at a task that has ended. The percentage is the lower 95% bound, so that "99.9%" takes 2,996
    of them without a failure.
    """
    failures = len(recoveries)
    n = failures + sum(entry["kind"] == "task_finished" for entry in coordination)
    value = 100 * lower_bound(n, failures)
    text = f"at least {value:.2f}% of attempts at tasks succeed: {failures} of {n} failed"
    if not failures and n < runs_needed(0.999):
        text += f"; 99.9% takes {runs_needed(0.999):,} clean runs"
    return {"key": RELIABILITY, "value": value, "unit": "%", "n": n, "failures": failures, "text": text}


def _metrics(
    claims: list[Claim],
    order: Order,
    evidence: list[Evidence],
    minutes: float,
    reliable: Mapping[str, Any],
    ready: bool,
) -> dict[str, float]:
    done = {each.agent for each in evidence} | {"BakingCoordinator"}
    values = {made.key: made.value for made in claims}
    traits = [abs(values[f"baking/{_DOCUMENTED[t]}"] - rate) for t, rate in order.config.persona.targets.items()]
    return {
        "tools_baked": len(order.lessons),
        "persona_traits": len(TRAITS),
        "tool_accuracy": values["baking/tool_accuracy"],
        "persona_coherence": values["baking/persona_coherence"],
        "processing_time_min": minutes,
        "agents_completed": len(done & set(AGENTS)),
        "ready_for_adas": float(ready),
        "baking/processing_time_min": minutes,
        "baking/largest_trait_error": max(traits),
        RELIABILITY: reliable["value"],
        "baking/attempts": reliable["n"],
        **{f"baking/agent_completion/{agent}": float(agent in done) for agent in AGENTS},
    }


def _summary(
    order: Order, evidence: list[Evidence], metrics: dict[str, float], claims: list[Claim], refused: dict[str, str]
) -> dict[str, Any]:
    return {
        "prompt": order.prompt.text,
        "tools_baked": sorted(order.lessons),
        "persona_traits": order.config.persona.targets,
        "steps": {step: [each.agent for each in evidence if each.step == step] for step in STEPS},
        "metrics": metrics,
        "claims": [made.model_dump(mode="json") for made in claims],
        "refused": refused,
        "evidence": [each.model_dump(mode="json") for each in evidence],
    }
