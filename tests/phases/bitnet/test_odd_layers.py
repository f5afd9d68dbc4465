"""Single layers that are odd, as an exported graph computes them: the same as the layer in torch, or a named error."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from phases.bitnet.activations import BLOCK_128, quantiser_for
from phases.bitnet.linear import BitLinear
from phases.bitnet.onnx_graph import IR_VERSION, MICROSOFT, OPSET, Graph, linear
from phases.bitnet.ternary import ternarise
from phases.errors import NumericalError


def layer(rows: int = 200, columns: int = 37, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows, bias=bias)


def exported(layer: BitLinear, x: Tensor) -> np.ndarray:
    """Return what ONNX Runtime makes of the exported layer."""
    graph = Graph()
    y = linear(graph, "x", "w", layer.quantised(), bias=None if layer.bias is None else layer.bias.detach())
    graph.nodes.append(helper.make_node("Identity", [y], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", layer.in_features])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", layer.out_features])]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph.proto("layer", inputs, outputs), opset_imports=opsets, ir_version=IR_VERSION)
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})[0]


def plain(found: nn.Linear) -> None:
    """Leave the layer as it is."""


def zero_row(found: nn.Linear) -> None:
    found.weight[3] = 0


def outlier(found: nn.Linear) -> None:
    found.weight[3, 5] = 1e4


def ternary(found: nn.Linear) -> None:
    found.weight.copy_(0.25 * found.weight.sign() * (found.weight.abs() > 0.05))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("change", [plain, zero_row, outlier, ternary])
@pytest.mark.parametrize("shape", [(200, 37), (37, 200), (5, 256), (5, 300)])
def test_exported_layer_is_the_layer(shape: tuple[int, int], change: object, bias: bool) -> None:
    source = layer(*shape, bias)
    with torch.no_grad():
        change(source)
    bit = BitLinear(source, ternarise, quantiser_for("block", shape[1], bits=2))
    x = torch.randn(9, shape[1], generator=torch.Generator().manual_seed(1))
    wanted = bit(x).detach().numpy()
    found = exported(bit, x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    if change is zero_row:
        assert np.array_equal(
            found[:, 3], np.full(9, 0.0 if source.bias is None else source.bias[3].item(), np.float32)
        )
    if change is ternary:
        assert torch.equal(bit.quantised().dequantise(), source.weight)


def test_nan_and_an_outlier_beyond_fp16_are_named() -> None:
    for value, problem in ((float("nan"), "not all finite"), (1e8, "fp16")):
        source = layer()
        with torch.no_grad():
            source.weight[7, 7] = value
        with pytest.raises(NumericalError, match=problem):
            BitLinear(source, ternarise, BLOCK_128).quantised()
