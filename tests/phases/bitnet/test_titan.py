"""Quantised models: what is quantised, that nothing else is used, gradients, and models that cannot be quantised."""

import pytest
import torch
from torch import Tensor

from phases.bitnet.activations import BLOCK_64, BLOCK_128
from phases.bitnet.config import QuantisationConfig
from phases.bitnet.linear import BitLinear
from phases.bitnet.rows import RowTensor
from phases.bitnet.ternary import TernaryTensor
from phases.bitnet.titan import BLOCK_MATRICES, MEMORY_MATRICES, to_bitnet
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError, NumericalError


def test_matrices_have_the_formats_of_the_configuration(untied: TinyTitan) -> None:
    stored = to_bitnet(untied, QuantisationConfig(embedding="int4")).quantised()
    blocks = {f"blocks.{i}.{name}.weight" for i in range(2) for name in BLOCK_MATRICES}
    memory = {f"memory.{name}.weight" for name in MEMORY_MATRICES}
    assert set(stored) == blocks | memory | {"embedding.weight", "head.weight"}
    assert all(isinstance(stored[name], TernaryTensor) for name in blocks)
    for name, bits in [(m, 8) for m in memory] + [("embedding.weight", 4), ("head.weight", 4)]:
        tensor = stored[name]
        assert isinstance(tensor, RowTensor)
        assert tensor.bits == bits


def test_parent_stays_as_it_is(titan: TinyTitan) -> None:
    before = {name: tensor.clone() for name, tensor in titan.state_dict().items()}
    model = to_bitnet(titan, QuantisationConfig())
    assert set(model.state_dict()) == set(before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(titan.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("tied", [True, False])
def test_every_product_is_with_quantised_numbers(titan: TinyTitan, untied: TinyTitan, rows: Tensor, tied: bool) -> None:
    """A plain model with the stored weights and quantised inputs by hooks gives the same logits."""
    parent = titan if tied else untied
    model = to_bitnet(parent, QuantisationConfig()).eval()
    plain = TinyTitan(parent.config).eval()
    stored = {name: tensor.dequantise() for name, tensor in model.quantised().items()}
    plain.load_state_dict({**parent.state_dict(), **stored})
    for name in (name for name, module in model.named_modules() if isinstance(module, BitLinear)):
        block = BLOCK_128 if name.startswith("memory.") else BLOCK_64  # no block of the fixture has over 256 inputs
        plain.get_submodule(name).register_forward_pre_hook(lambda _, args, block=block: (block.values(args[0]),))
    plain.norm.register_forward_hook(lambda _, args, out: BLOCK_128.values(out))
    torch.testing.assert_close(model(rows)[0], plain(rows)[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        off = model(rows)[0] - parent.eval()(rows)[0]
    assert float(off.abs().max()) > 0.05


def test_weights_are_quantised_again_after_they_change(titan: TinyTitan, rows: Tensor) -> None:
    model = to_bitnet(titan, QuantisationConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    before = model.blocks[0].qkv(torch.ones(1, 24))
    model.loss(rows)[0].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.blocks.parameters())
    optimizer.step()
    after = model.blocks[0].qkv(torch.ones(1, 24))
    fresh = to_bitnet(model, QuantisationConfig()).blocks[0].qkv(torch.ones(1, 24))
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


def test_a_model_made_in_inference_mode_works(titan: TinyTitan, rows: Tensor) -> None:
    wanted = to_bitnet(titan, QuantisationConfig()).eval()
    with torch.inference_mode():
        model = to_bitnet(titan, QuantisationConfig()).eval()
        assert torch.equal(model(rows)[0], wanted(rows)[0])
        model.blocks[0].qkv.weight.mul_(-1)
        assert not torch.equal(model(rows)[0], wanted(rows)[0])


def test_gradient_is_that_of_the_quantised_weight() -> None:
    linear = torch.nn.Linear(5, 3)
    layer = BitLinear(linear, lambda w: RowTensor(torch.ones(3, 5, dtype=torch.int8), torch.ones(3, 1), 8), lambda x: x)
    x = torch.randn(2, 5, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 5), 3.0))  # through the ones that it used
    assert torch.equal(linear.weight.grad, x.detach().sum(0).expand(3, 5))


def test_refuses_what_is_not_finite_by_name(titan: TinyTitan) -> None:
    with torch.no_grad():
        titan.blocks[1].down.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match=r"blocks\.1\.down\.weight"):
        to_bitnet(titan, QuantisationConfig())


def test_refuses_calibrated_thresholds_that_are_not_there(titan: TinyTitan) -> None:
    with pytest.raises(ConfigError, match="calibrate first"):
        to_bitnet(titan, QuantisationConfig(calibrated=True))
