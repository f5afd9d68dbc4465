"""The models that the optimiser is judged by run, and other tools' failures are told with their reason."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import minilm, quantisers
from benchmarks.documented import _fresh
from benchmarks.optimize import harm
from benchmarks.quantisers import Quantiser
from benchmarks.zoo import ZOO, Bottleneck, resnet
from phases.baking.optimise.ablation import Ablation
from phases.baking.optimise.session import Feeds, SessionSettings, open_session
from phases.baking.optimise.timing import Ratio
from phases.errors import ForgeError


def test_there_are_ten_architectures_and_one_runs_at_every_level(tmp_path: Path) -> None:
    assert len(ZOO) == 10
    file = tmp_path / "model.onnx"
    feed = ZOO["TinyTitan"](file)
    found = [open_session(file, SessionSettings(level=level)).run(None, feed)[0] for level in ("off", "all")]
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)


def test_resnet_50_has_the_published_number_of_weights() -> None:
    model = resnet((3, 4, 6, 3))
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    assert sum(isinstance(m, Bottleneck) for m in model.modules()) == 16


def test_a_layer_of_bert_base_has_its_size() -> None:
    weights = minilm.weights(None, minilm.Shape(minilm.BASE.width, 1))
    assert sum(value.size for name, value in weights.items() if "embeddings" not in name) == 85_054_464 / 12


def test_calibration_feeds_are_others_of_the_same_shape() -> None:
    feed: Feeds = {"ids": np.arange(50)[None], "mask": np.ones((1, 50)), "x": np.zeros((1, 9), np.float32)}
    other = _fresh(feed, 0)
    assert {name: value.shape for name, value in other.items()} == {name: value.shape for name, value in feed.items()}
    assert sorted(other["ids"][0]) == list(range(50))
    assert not np.array_equal(other["ids"], feed["ids"])
    assert (other["mask"] == 1).all()


def test_a_tool_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisers, "RESULTS", tmp_path)
    monkeypatch.setattr(quantisers, "environment_of", lambda name, requirements: "python3")
    model = tmp_path / "model.onnx"
    model.write_bytes(b"a model")
    feeds = [{"x": np.ones(3)}]
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[3])"
    assert Quantiser("copier", (), copy).quantise(model, feeds).read_bytes() == b"a model"
    with pytest.raises(ForgeError, match="no such recipe"):
        Quantiser("other", (), "raise KeyError('no such recipe')").quantise(model, feeds)
    left = sorted(path.suffix for path in (tmp_path / "quantised").iterdir())
    assert left.count(".onnx") == 1


def test_the_fusion_that_does_most_harm_is_named_with_its_file() -> None:
    def found(gains: dict[str, Ratio]) -> Ablation:
        return Ablation(gains, SessionSettings(), {"all": 0.02}, {})

    harmless, noisy = Ratio(0.99, 0.97, 1.01), Ratio(1.3, 0.9, 1.7)
    ablations = {"fp32": found({"A": noisy}), "int8": found({"A": harmless, "B": Ratio(1.16, 1.07, 1.2)})}
    figure = harm(ablations)
    assert (figure.value, figure.low, figure.ok) == (1.16, 1.07, True)
    assert "without B, int8, the worst of 3" in figure.unit
    assert not harm({"fp32": found({"A": harmless})}).ok
