"""Three small TinyTitans that share a start, as phase 1 leaves them."""

import pytest
import torch

from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TinyTitan, TitanConfig
from phases.evomerge.candidate import Parents
from phases.evomerge.fitness import FitnessRows, Questions
from phases.evomerge.statistics import diagonal_fisher_of, gram_matrices

CONFIG = TitanConfig(
    vocab_size=280,
    d_model=24,
    n_layers=3,
    n_heads=2,
    hidden=32,
    tied=True,
    segment_len=8,
    max_ponder_steps=2,
    memory=MemoryConfig(hidden=16, capacity=12),
)
NAMES = ("reasoning", "memory", "adaptive")


@pytest.fixture(scope="session")
def rows() -> FitnessRows:
    """Text of 4 streams and 6 questions, all random."""
    generator = torch.Generator().manual_seed(5)
    text = torch.randint(16, 280, (4, 33), generator=generator).numpy()
    prompts = [torch.randint(16, 280, (3 + i,), generator=generator).tolist() for i in range(6)]
    answers = [torch.randint(16, 280, (1 + i % 3,), generator=generator).tolist() for i in range(6)]
    return FitnessRows(text, Questions(prompts, answers))


@pytest.fixture(scope="session")
def parents(rows: FitnessRows) -> Parents:
    """The parents, with Fisher information and Gram matrices."""
    torch.manual_seed(0)
    base = TinyTitan(CONFIG)
    models = {}
    for number, name in enumerate(NAMES):
        torch.manual_seed(1 + number)
        model = TinyTitan(CONFIG)
        model.load_state_dict({k: v + 0.02 * torch.randn_like(v) for k, v in base.state_dict().items()})
        models[name] = model
    text = torch.from_numpy(rows.text)
    return Parents(
        base={k: v.clone() for k, v in base.state_dict().items()},
        models={name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()},
        configs={name: CONFIG.model_copy(update={"halt_threshold": 0.9 + 0.03 * i}) for i, name in enumerate(NAMES)},
        fishers={name: diagonal_fisher_of(model, text) for name, model in models.items()},
        grams={name: gram_matrices(model, text) for name, model in models.items()},
    )
