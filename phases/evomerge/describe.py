"""A plan for people and as JSON: what each tensor of the result would be made of."""

from collections.abc import Iterator
from typing import Any

from phases.evomerge.plan import MergePlan, Step, TensorRef


def plan_lines(plan: MergePlan) -> Iterator[str]:
    """Yield the plan as text: the models, the result, and a line for each tensor."""
    for model, checkpoint in plan.checkpoints.items():
        base = " (base)" if model == plan.recipe.base_model else ""
        head = ", tied" if checkpoint.tied else ""
        yield f"model {model}{base}: {len(checkpoint.entries)} tensors, {checkpoint.stacks.depth} layers{head}"
    tokenizer = f", tokenizer of {plan.companions[0].parent}" if plan.companions else ", no tokenizer"
    yield f"result: {len(plan.steps)} tensors, {plan.parameters:,} parameters, {plan.bytes / 1e6:,.1f} MB{tokenizer}"
    width = max((len(step.name) for step in plan.steps), default=0)
    for step in plan.steps:
        inputs = ", ".join(_label(plan, step, ref) for ref in step.inputs)
        base = f" onto {_label(plan, step, step.base)}" if step.base else ""
        given = "".join(f" {key.rstrip('_')}={_short(value)}" for key, value in step.parameters.items())
        shape = "x".join(map(str, step.shape)) or "scalar"
        kind = str(step.dtype).removeprefix("torch.")
        yield f"{step.name:<{width}}  {shape} {kind}  {step.method}{given}: {inputs}{base}"


def plan_json(plan: MergePlan) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "recipe": plan.recipe.raw,
        "models": {model: str(checkpoint.folder) for model, checkpoint in plan.checkpoints.items()},
        "parameters": plan.parameters,
        "bytes": plan.bytes,
        "config": plan.config,
        "copied": [str(file) for file in plan.companions],
        "tensors": [
            {
                "name": step.name,
                "shape": list(step.shape),
                "dtype": str(step.dtype).removeprefix("torch."),
                "method": step.method,
                "inputs": [ref._asdict() for ref in step.inputs],
                "base": step.base._asdict() if step.base else None,
                "parameters": step.parameters,
            }
            for step in plan.steps
        ],
    }


def _label(plan: MergePlan, step: Step, ref: TensorRef) -> str:
    """Return the model's folder, and the tensor where its name is not that of the result."""
    folder = plan.checkpoints[ref.model].folder.name
    return folder if ref.name == step.name else f"{folder}:{ref.name}"


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{', '.join(map(_short, dict.fromkeys(value) if len(set(value)) == 1 else value))}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
