"""Configuration of phase 6: what is baked, how the model is taught to follow prompts first, and what counts as done."""

from pydantic import Field

from phases.baking.lora import LoRAConfig
from phases.baking.losses import Loss
from phases.baking.optimise.candidates import Target
from phases.baking.persona import Persona
from phases.settings import Settings
from phases.training.config import AdamWTrainingConfig, TrainingConfig


class InstructionConfig(Settings):
    """Teaching a model to follow system prompts; without this there is nothing to bake."""

    training: AdamWTrainingConfig = Field(
        default=TrainingConfig(steps=900, batch_size=32, learning_rate=3e-3, warmup_steps=50, checkpoint_every=100),
        description="on dialogues; `seq_len` is that of the text in between",
    )
    copying_steps: int = Field(
        default=200,
        ge=0,
        description="the first of all, on repeating words alone; with 200 of 1,500, 94% of single calls were right "
        "after 600 steps, without 15% (seed 0 of `forge bench baking`)",
    )
    text_share: float = Field(default=0.2, ge=0, lt=1, description="of the steps that see plain text instead")


class PromptBakingConfig(Settings):
    """Prompt baking (Bhargava et al. 2024): the student without the prompt learns what the teacher does with it."""

    training: AdamWTrainingConfig = Field(
        default=TrainingConfig(
            steps=400,
            batch_size=32,
            learning_rate=3e-3,
            final_learning_rate=0.0,
            weight_decay=0.0,
            precision="fp32",
            checkpoint_every=50,
        ),
        description="of the adapters; fp32, for divergences of a thousandth of a nat are what is learned. One seed was "
        ".009 nats off under other prompts after 200 steps, .002 after 400 (`forge bench baking`)",
    )
    lora: LoRAConfig = LoRAConfig()
    loss: Loss = "forward_kl"
    trajectories: int = Field(default=3000, ge=8, description="replies sampled from the prompted teacher")
    retention: float = Field(default=0.25, ge=0, lt=1, description="share of a batch that keeps other prompts working")
    strength: float = Field(default=1.0, gt=0, le=2, description="s in W + s * BA when merged")


class EvaluationConfig(Settings):
    """How much is measured, all of it on held-out values."""

    dialogues: int = Field(default=400, ge=16, description="for divergences, and as many questions for the traits")
    tool_requests: int = Field(default=300, ge=16, description="single, parallel and irrelevant ones together")


class OptimisationConfig(Settings):
    """Making the baked model fast or small for this machine."""

    target: Target = "latency"
    max_loss: float = Field(default=0.01, gt=0, lt=1, description="1 - the smallest cosine that an output may have")
    rounds: int = Field(default=9, ge=3, description="of each interleaved timing")
    tokens: int = Field(default=16, ge=1, description="of the pass that is timed")


class BakingConfig(Settings):
    """Phase 6."""

    tools: str = Field(
        default="rag_query,code_execution,web_search", description="names with commas, or a JSON file of lessons"
    )
    persona: Persona = Persona()
    instruction: InstructionConfig = InstructionConfig()
    prompt_baking: PromptBakingConfig = PromptBakingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    least_retention: float = Field(
        default=0.95, gt=0, le=1, description="gate: tool accuracy over that of the prompted model (documented)"
    )
