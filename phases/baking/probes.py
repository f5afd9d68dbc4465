"""The measurements behind the claims of phase 6, each of the models as they are on disk."""

from typing import Any

from phases.baking.config import BakingConfig
from phases.baking.judge import behaviour
from phases.baking.persona import TRAITS
from phases.baking.phase import Order
from phases.contract import ModelRef, Probe
from phases.errors import ConfigError
from phases.probes import Measurement, RunFiles, probe

QUANTITIES = ("kl_removed", "other_prompts", "tool_accuracy", "persona_coherence", *TRAITS)


@probe("baking/behaviour")
def measure_behaviour(
    files: RunFiles, quantity: str, who: str, parent: dict[str, Any], config: dict[str, Any], seed: int
) -> Measurement:
    """Return a quantity of the `baked` or of the `prompted` model; all are measured once per sitting.

    Raises `ConfigError` for a quantity that is not known.
    """
    order = Order(files.uri, ModelRef.model_validate(parent), BakingConfig.model_validate(config), seed)
    if "baking/behaviour" not in files.cache:
        files.cache["baking/behaviour"] = behaviour(order)
    found = files.cache["baking/behaviour"]
    divergence = found["divergence"]
    match quantity:
        case "kl_removed":
            return Measurement(100 * (1 - divergence["after"] / divergence["before"]))
        case "other_prompts":
            return Measurement(divergence["other_prompts"])
        case "tool_accuracy":
            return Measurement(found["tools"][who]["all"]["rate"], [found["tools"][who]])
        case "persona_coherence":
            return Measurement(found["persona"][who]["coherence"])
        case trait if trait in TRAITS:
            return Measurement(found["persona"][who][trait]["rate"], [found["persona"][who][trait]])
    raise ConfigError.of("quantity", quantity, "not known", f"choose one of {', '.join(QUANTITIES)}")


def behaviour_probe(order: Order, quantity: str, who: str = "baked") -> Probe:
    """Return the probe of a quantity."""
    arguments: dict[str, Any] = {"quantity": quantity, "who": who, "seed": order.seed}
    arguments |= {"parent": order.parent.model_dump(mode="json"), "config": order.config.model_dump(mode="json")}
    return Probe(name="baking/behaviour", arguments=arguments)
