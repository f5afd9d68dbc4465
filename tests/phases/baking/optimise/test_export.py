"""Any module with example inputs becomes an ONNX file that computes the same, or an error that says why not."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from phases.baking.optimise.export import export_module
from phases.baking.optimise.session import SessionSettings, node_counts, open_session
from phases.baking.optimise.sources import open_source
from phases.errors import ArtifactError, ConfigError, NumericalError

pytest.importorskip("onnxscript")


class Mixer(nn.Module):
    """Mixes along an axis of any length behind a cache that may be empty, and repeats until a sum is large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat([past, self.inner(x)], dim=1)
        rounds, doubled = while_loop(
            lambda rounds, y: (rounds < 5) & (y.abs().sum() < 100),
            lambda rounds, y: (rounds + 1, y * 2),
            (torch.zeros((), dtype=torch.int64), joined),
        )
        return doubled.cumsum(1)[:, past.shape[1] :], rounds


class Branching(nn.Module):
    """Does what no graph can say."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.fixture
def mixer() -> Mixer:
    torch.manual_seed(0)
    return Mixer().eval().requires_grad_(False)


DYNAMIC = {"x": {0: "batch", 1: "length"}, "past": {0: "batch", 1: "past"}}
EXAMPLES = (torch.randn(2, 3, 6), torch.randn(2, 4, 6))


@pytest.mark.slow
def test_a_module_with_a_loop_runs_at_any_size_and_with_no_past(mixer: Mixer, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    export_module(mixer, EXAMPLES, file, DYNAMIC)
    assert node_counts(file)["Loop"] == 1
    session = open_session(file, SessionSettings())
    assert [each.shape for each in session.get_inputs()] == [["batch", "length", 6], ["batch", "past", 6]]
    for batch, length, past in ((1, 1, 0), (3, 7, 0), (1, 2, 9)):
        inputs = {"x": torch.randn(batch, length, 6), "past": torch.randn(batch, past, 6)}
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for ours, theirs in zip(found, mixer(**inputs), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_what_torch_cannot_export_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot export Branching.*torch\.cond"):
        export_module(Branching().eval(), (torch.randn(3),), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_module_cannot_take_is_named(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                return x * 2
            return x.reshape(3, -1) * 2

    with pytest.raises(ArtifactError, match=r"Fixed itself cannot take x \(4, 5\)"):
        export_module(Fixed().eval(), (torch.randn(3, 5),), tmp_path / "model.onnx", {"x": {0: "batch"}})
    assert not list(tmp_path.iterdir())


def test_examples_that_cannot_serve_are_refused_before_work_starts(mixer: Mixer, tmp_path: Path) -> None:
    x, past = EXAMPLES
    out = tmp_path / "model.onnx"
    with pytest.raises(ConfigError, match="missing a required argument: 'past'"):
        export_module(mixer, (x,), out)
    with pytest.raises(ConfigError, match="axis 1 would be fixed"):
        export_module(mixer, (x[:, :1], past), out, DYNAMIC)
    with pytest.raises(ConfigError, match="no input"):
        export_module(mixer, (x, past), out, {"y": {0: "batch"}})
    with pytest.raises(ConfigError, match="length is 3 elsewhere"):
        export_module(mixer, (x, past), out, {"x": {1: "length"}, "past": {1: "length"}})
    with pytest.raises(ConfigError, match="axis 3"):
        export_module(mixer, (x, past), out, {"x": {3: "batch"}})
    with pytest.raises(ConfigError, match="eval"):
        export_module(mixer.train(), (x, past), out)
    mixer.eval().inner.weight[0, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"inner\.weight"):
        export_module(mixer, (x, past), out)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program that `torch.export.save` wrote."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).eval()
    exported = torch.export.export(module, (torch.randn(3, 6),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(exported, path)
    return path


def test_a_program_of_torch_can_be_optimised(program: Path, tmp_path: Path) -> None:
    source = open_source(str(program), tmp_path, inputs=None, sizes={})
    assert source.eager is not None
    feeds = source.inputs.evaluation[0]
    found = open_session(source.file, SessionSettings()).run(None, feeds)[0]
    np.testing.assert_allclose(found, source.eager(feeds), atol=1e-5)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["data/constants/custom_obj_0", "data/sample_inputs/model.pt"])
def test_a_program_with_a_pickle_in_it_is_refused_unread(where: str, program: Path, tmp_path: Path) -> None:
    altered, sign = tmp_path / "altered.pt2", tmp_path / "ran"
    with zipfile.ZipFile(program) as before, zipfile.ZipFile(altered, "w") as after:
        folder = before.namelist()[0].partition("/")[0]
        for name in before.namelist():
            if not name.endswith(where):
                after.writestr(name, before.read(name))
        after.writestr(f"{folder}/{where}", pickle.dumps(_Touch(sign)))
    with pytest.raises(ArtifactError, match="pickled"):
        open_source(str(altered), tmp_path, inputs=None, sizes={})
    assert not sign.exists()


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    file.write_bytes(b"not a program")
    with pytest.raises(ArtifactError, match="not a program"):
        open_source(str(file), tmp_path, inputs=None, sizes={})
