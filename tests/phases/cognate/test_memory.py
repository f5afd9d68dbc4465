"""The memory: its parameters, the write rule against a sequential one, eviction, isolation of streams, gradients."""

import pytest
import torch
from torch import Tensor

from phases.cognate.memory import LongTermMemory, MemoryConfig, MemoryState, plan_writes, relative

D, CHUNK = 8, 2


def make(**changes: object) -> LongTermMemory:
    torch.manual_seed(0)
    return LongTermMemory(D, MemoryConfig.model_validate({"chunk": CHUNK, "hidden": 6, "capacity": 16} | changes))


def segment(seed: int, batch: int = 2, tokens: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, D, generator=generator), torch.rand(batch, tokens, generator=generator) * 3


def filled(memory: LongTermMemory, segments: int = 3) -> MemoryState:
    state = memory.empty(2, "cpu", torch.float32)
    for seed in range(segments):
        state = memory.write(state, *segment(seed))
    return state


def test_the_parameters_are_the_documented_ones() -> None:
    memory = LongTermMemory(216, MemoryConfig())
    expected = 4 * 216**2 + 3 * 217 + 216 + 3 * 4 * 216 + 216 * 1218 + 1218 + 1218 * 216 + 216
    assert sum(parameter.numel() for parameter in memory.parameters()) == expected


def test_an_empty_memory_adds_nothing() -> None:
    memory = make()
    x, _ = segment(0)
    assert not memory.read(x, memory.empty(2, "cpu", torch.float32)).any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["surprise_novelty", "surprise", "novelty"])
def test_writing_a_segment_is_writing_its_chunks_one_by_one(seed: int, policy: str) -> None:
    memory = make(policy=policy, duplicate=0.6)
    state = filled(memory)
    generator = torch.Generator().manual_seed(100 + seed)
    keys = torch.nn.functional.normalize(torch.randn(2, 7, D, generator=generator), dim=-1)
    keys[:, 4] = keys[:, 1]
    surprise = torch.rand(2, 7, generator=generator) * 3
    state = state.detach()
    plan = plan_writes(state, keys, surprise, memory.config)
    for row in range(2):
        mean_surprise = (state.surprise[row] + surprise[row].sum()) / (state.seen[row] + 7)
        mean_novelty = (state.novelty[row] + 0.5) / (state.seen[row] + 1)
        known = [key for key, valid in zip(state.keys[row], state.valid[row], strict=True) if valid]
        for chunk in range(7):
            cosine = max((float(keys[row, chunk] @ other) for other in known), default=-1.0)
            novelty = relative(torch.tensor(1 - min(max(cosine, 0), 1)), mean_novelty)
            surprising = relative(surprise[row, chunk], mean_surprise)
            score = {"surprise_novelty": (surprising + novelty) / 2, "surprise": surprising, "novelty": novelty}[policy]
            duplicate = cosine >= 0.6 and policy != "surprise"
            accept = bool(score >= memory.config.write_threshold) and not duplicate
            assert bool(plan.accept[row, chunk]) == accept
            assert (int(plan.target[row, chunk]) >= 0) == duplicate
            if accept:
                known.append(keys[row, chunk])


@pytest.mark.parametrize("policy", ["surprise_novelty", "surprise", "novelty", "fifo", "random"])
def test_capacity_is_never_exceeded(policy: str) -> None:
    memory = make(policy=policy, capacity=4)
    state = filled(memory, segments=5)
    assert int(state.valid.sum(1).max()) <= 4
    assert state.keys.shape[1] <= 4


def test_first_in_first_out_keeps_the_newest() -> None:
    state = filled(make(policy="fifo", capacity=4))
    assert sorted(state.age[0].tolist()) == [0, 1, 2, 3]


def test_streams_do_not_see_one_another() -> None:
    memory = make()
    alone = filled(memory)
    x, _ = segment(9)
    hidden, surprise = segment(8)
    other_hidden, other_surprise = hidden.clone(), surprise.clone()
    other_hidden[1], other_surprise[1] = other_hidden[1] * 3 + 1, 0.1
    first = memory.read(x, memory.write(alone, hidden, surprise))
    second = memory.read(x, memory.write(alone, other_hidden, other_surprise))
    assert torch.allclose(first[0], second[0], atol=1e-6)
    assert not torch.allclose(first[1], second[1], atol=1e-3)


def test_a_reset_stream_remembers_nothing() -> None:
    memory = make()
    x, _ = segment(9)
    read = memory.read(x, filled(memory).reset(torch.tensor([True, False])))
    assert not read[0].any()
    assert read[1].any()


def test_every_parameter_learns_from_a_later_read() -> None:
    memory = make()
    hidden, surprise = segment(1)
    hidden.requires_grad_()
    state = memory.write(memory.empty(2, "cpu", torch.float32), hidden, surprise)
    state = memory.write(state, *segment(2))
    memory.read(segment(3)[0], state).square().sum().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_a_ragged_segment_is_refused() -> None:
    memory = make()
    with pytest.raises(ValueError, match=r"no multiple of memory\.chunk"):
        memory.write(memory.empty(1, "cpu", torch.float32), torch.zeros(1, 3, D), torch.zeros(1, 3))
