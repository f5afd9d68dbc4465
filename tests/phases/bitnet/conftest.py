"""What tests of BitNet share."""

import pytest
import torch

from phases.cognate.titan import TinyTitan
from support.titans import small


@pytest.fixture
def titan() -> TinyTitan:
    """Return a tied model."""
    return small()


@pytest.fixture
def untied() -> TinyTitan:
    """Return a model with a head of its own."""
    return small(tied=False)


@pytest.fixture
def rows() -> torch.Tensor:
    """Return (3, 41) token ids: two whole segments and a part."""
    return torch.randint(16, 300, (3, 41), generator=torch.Generator().manual_seed(1))
