"""The smallest model and configuration that go through all of phase 6, for benches of how it runs."""

import torch

from phases import modeldir
from phases.baking.config import (
    BakingConfig,
    EvaluationConfig,
    InstructionConfig,
    OptimisationConfig,
    PromptBakingConfig,
)  # fmt: skip
from phases.baking.instruct import dialogue_tokenizer
from phases.baking.lessons import LESSONS
from phases.cognate.loading import model_config
from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.contract import ModelRef
from phases.seeds import child_seed
from phases.training.config import TrainingConfig

_TRAINING = TrainingConfig(
    steps=8, batch_size=8, seq_len=32, learning_rate=5e-3, warmup_steps=2, checkpoint_every=2, precision="fp32"
)
SMALL = BakingConfig(
    instruction=InstructionConfig(training=_TRAINING),
    prompt_baking=PromptBakingConfig(training=_TRAINING, trajectories=24),
    evaluation=EvaluationConfig(dialogues=16, tool_requests=16),
    optimisation=OptimisationConfig(target="size", rounds=3, tokens=8, max_loss=0.5),  # no clock decides what is chosen
)


def write_model(uri: str, seed: int) -> ModelRef:
    """Write a model of random weights that depend on the seed."""
    tokenizer = dialogue_tokenizer(LESSONS, 400)
    config = TitanConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=32,
        n_layers=1,
        n_heads=2,
        hidden=64,
        tied=True,
        segment_len=128,
        max_ponder_steps=1,
        train_ponder_steps=1,
        memory=MemoryConfig(hidden=16),
    )
    torch.manual_seed(child_seed(seed, "model"))
    model = TinyTitan(config)
    with torch.no_grad():
        for parameter in model.memory.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))  # query and key start out the same
    return modeldir.save_model(
        uri,
        tensors=model.state_dict(),
        config=model_config(config),
        tokenizer=tokenizer.to_str(),
        lineage=modeldir.Lineage(phase="cognate", seed=seed),
    )
