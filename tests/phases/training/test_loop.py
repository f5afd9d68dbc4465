"""The loop: what a step does, and that a run stopped anywhere ends with the same bits."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phases.baking.config import InstructionConfig, PromptBakingConfig
from phases.errors import ArtifactError, ConfigError, NumericalError
from phases.quietstar.config import QuietStarConfig
from phases.settings import Settings
from phases.training.config import TrainingConfig
from phases.training.loop import StepReport, make_optimizers, train
from phases.training.losses import linear_cross_entropy
from phases.training.state import META, TENSORS, TrainState

VOCABULARY = 19


class Bigram(nn.Module):
    """The smallest model with matrices, a vector, and randomness in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.norm = nn.RMSNorm(12)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(12, VOCABULARY, bias=False)

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [self.head.weight]

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.dropout(self.norm(self.embedding(rows[:, :-1])))
        loss, losses = linear_cross_entropy(h.flatten(0, 1), self.head.weight, rows[:, 1:].flatten())
        return loss, {"worst": losses.max()}


def _batches(rows: int = 4):
    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        start = torch.randint(0, VOCABULARY, (rows, 1), generator=generator)
        return (start + 3 * torch.arange(9)) % VOCABULARY

    return batch


def _config(**changes: object) -> TrainingConfig:
    shape = {"steps": 20, "batch_size": 4, "seq_len": 8, "warmup_steps": 3}
    return TrainingConfig.model_validate(shape | {"checkpoint_every": 1, "precision": "fp32"} | changes)


def _run(config: TrainingConfig, state: TrainState | None = None, rows: int = 4, seed: int = 0):
    model, reports, states = Bigram(), list[StepReport](), list[TrainState]()
    torch.manual_seed(seed)
    train(model, _batches(rows), config, state=state, on_step=reports.append, save=states.append)
    return model, reports, states


def _digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_anywhere_it_ends_with_the_same_bits(precision: str, optimizer: str) -> None:
    config = _config(precision=precision, optimizer=optimizer)
    straight, reports, states = _run(config)
    assert [state.step for state in states] == list(range(1, 20)), "after every step but the last"
    for state in states[::6]:
        restored = TrainState.from_files(state.to_files())
        resumed, later, _ = _run(config, restored, seed=99)
        assert _digest(resumed) == _digest(straight)
        assert [r.loss for r in later] == [r.loss for r in reports[state.step :]]


def test_without_the_generator_state_the_bits_would_differ() -> None:
    """The control of the test above: dropout does draw from the generator that is saved."""
    straight, _, states = _run(_config())
    broken = dict(states[9].tensors, generator=torch.Generator().manual_seed(5).get_state())
    resumed, _, _ = _run(_config(), TrainState(10, "fp32", broken))
    assert _digest(resumed) != _digest(straight)


def test_auto_keeps_the_precision_that_the_run_began_with() -> None:
    config = _config(precision="auto", steps=6)
    model, _, states = _run(_config(precision="fp32", steps=6))
    resumed, _, later = _run(config, states[2])
    assert {state.precision for state in later} == {"fp32"}
    assert _digest(resumed) == _digest(model)


def test_it_learns_and_reports() -> None:
    _, reports, _ = _run(_config(steps=150, learning_rate=3e-2, checkpoint_every=500))
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert [r.step for r in reports] == list(range(1, 151))
    assert {r.tokens for r in reports} == {32}
    assert all(r.metrics["worst"] >= r.loss for r in reports)
    assert all(math.isfinite(r.grad_norm) and r.seconds >= 0 for r in reports)
    assert reports[0].learning_rate == pytest.approx(1e-2)


def test_accumulated_parts_make_the_step_of_the_whole_batch() -> None:
    batches = _batches(8)
    models = []
    for config in (_config(batch_size=8, steps=5), _config(batch_size=2, accumulate=4, steps=5)):
        model = Bigram()
        model.dropout.p = 0.0
        train(model, batches, config, on_step=lambda report: None, save=lambda state: None)
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_steps_equal_those_of_plain_adamw() -> None:
    """A loop written out with `F.cross_entropy`, the reference optimiser and clipping."""
    config = _config(steps=8, grad_clip=0.3)
    ours, reference = Bigram(), Bigram()
    ours.dropout.p = 0.0
    reports = list[StepReport]()
    train(ours, _batches(), config, on_step=reports.append, save=lambda state: None)
    decayed = [reference.embedding.weight, reference.head.weight]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": [reference.norm.weight], "weight_decay": 0.0}],
        betas=config.betas,
        foreach=False,
    )
    for step in range(8):
        rows = _batches()(step)
        for group in optimizer.param_groups:
            group["lr"] = reports[step].learning_rate
        logits = reference.head(reference.norm(reference.embedding(rows[:, :-1])))
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in reference.parameters()))
        assert reports[step].grad_norm == pytest.approx(norm.item(), rel=1e-4)
        for p in reference.parameters():
            p.grad.mul_(min(1.0, 0.3 / (norm.item() + 1e-6)))
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_vectors_are_not_decayed() -> None:
    (adamw,) = make_optimizers(Bigram(), _config(weight_decay=0.3))
    groups = [(g["weight_decay"], {p.dim() for p in g["params"]}) for g in adamw.param_groups]
    assert groups == [(0.3, {2}), (0.0, {1})]


def test_muon_moves_hidden_matrices_as_far_as_adamw_would_and_adamw_the_rest() -> None:
    config = _config(steps=1, warmup_steps=0, weight_decay=0.0, grad_clip=1e9)
    before, moved = Bigram(), dict[str, Bigram]()
    for optimizer in ("adamw", "muon"):
        moved[optimizer] = Bigram()
        moved[optimizer].dropout.p = 0.0
        changed = config.model_copy(update={"optimizer": optimizer})
        train(moved[optimizer], _batches(), changed, on_step=lambda report: None, save=lambda state: None)
    for name in ("embedding.weight", "norm.weight"):
        assert torch.equal(*(model.get_parameter(name) for model in moved.values()))
    update = moved["muon"].head.weight - before.head.weight
    singular = torch.linalg.svdvals(update / (0.2 * config.learning_rate * max(update.shape) ** 0.5))
    assert singular.min() > 0.3  # five Newton-Schulz steps bring all near 1
    assert singular.max() < 1.4


@pytest.mark.parametrize("quantity", ["loss", "gradient norm"])
def test_what_is_not_finite_is_named_and_nothing_is_updated(quantity: str) -> None:
    model = Bigram()
    at_step_2 = {}

    def poison(report: StepReport) -> None:
        if report.step == 2:
            if quantity == "loss":
                model.head.weight.data[0, 0] = math.nan
            else:
                model.norm.weight.register_hook(lambda grad: grad * math.inf)
            at_step_2.update({name: p.detach().clone() for name, p in model.named_parameters()})

    with pytest.raises(NumericalError, match=rf"step 2: {quantity}"):
        train(model, _batches(), _config(), on_step=poison, save=lambda state: None)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, at_step_2[name], equal_nan=True, rtol=0, atol=0)


def test_a_state_holds_optimiser_tensors_by_parameter_name() -> None:
    _, _, states = _run(_config(steps=3))
    files = states[-1].to_files()
    assert set(files) == {TENSORS, META}
    names = {"model.head.weight", "exp_avg.head.weight", "exp_avg_sq.norm.weight", "step.norm.weight", "generator"}
    assert names <= set(TrainState.from_files(files).tensors)


def test_a_later_step_does_not_change_a_saved_state() -> None:
    config = _config(steps=4)
    _, _, states = _run(config)
    assert not torch.equal(states[0].tensors["model.head.weight"], states[2].tensors["model.head.weight"])


def test_damaged_or_foreign_states_are_refused() -> None:
    _, _, states = _run(_config(steps=3))
    files = states[-1].to_files()
    for damaged in ({META: files[META]}, files | {TENSORS: files[TENSORS][:50]}, files | {META: b"{"}):
        with pytest.raises(ArtifactError, match="checkpoint"):
            TrainState.from_files(damaged)
    other = nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match="another model"):
        states[-1].restore(other, make_optimizers(other, _config()))


@pytest.mark.parametrize("config", [QuietStarConfig, InstructionConfig, PromptBakingConfig])
def test_muon_is_refused_where_it_has_nothing_to_move(config: type[Settings]) -> None:
    with pytest.raises(ConfigError, match="use adamw"):
        config.model_validate({"training": {"optimizer": "muon"}})
