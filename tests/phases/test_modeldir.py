"""A model directory is whole or it is not a model, and every altered byte is named."""

import uuid
from pathlib import Path

import pytest
import torch

from phases import modeldir, storage
from phases.contract import ModelRef
from phases.errors import ArtifactError
from phases.modeldir import Lineage


def write(uri: str, value: float = 1.0) -> ModelRef:
    return modeldir.save_model(
        uri,
        tensors={"a": torch.full((2, 3), value), "b": torch.arange(4.0)},
        config={"d_model": 3},
        tokenizer="{}",
        lineage=Lineage(phase="cognate", seed=1, parents={"warm_up": "0" * 64}),
    )


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "model") if request.param == "file" else f"memory://{uuid.uuid4().hex}/model"


def test_round_trip(uri: str) -> None:
    ref = write(uri)
    assert ref.parameters == 10
    assert modeldir.open_ref(uri, ref.sha256) == ref
    assert torch.equal(modeldir.load_tensors(uri)["b"], torch.arange(4.0))
    assert modeldir.load_lineage(uri).parents == {"warm_up": "0" * 64}


def test_equal_weights_have_equal_hashes(uri: str) -> None:
    assert write(uri).sha256 == write(uri).sha256
    assert write(uri).sha256 != write(uri, 2.0).sha256


@pytest.mark.parametrize("name", [modeldir.WEIGHTS, modeldir.CONFIG, modeldir.TOKENIZER])
def test_one_flipped_byte_is_named(uri: str, name: str) -> None:
    write(uri)
    path = storage.join(uri, name)
    data = bytearray(storage.read_bytes(path))
    data[-1] ^= 1
    storage.write_bytes(path, bytes(data))
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        modeldir.open_ref(uri)


def test_a_missing_file_is_named(uri: str) -> None:
    write(uri)
    storage.remove(storage.join(uri, modeldir.TOKENIZER))
    assert modeldir.damaged_files(uri) == [f"{storage.join(uri, modeldir.TOKENIZER)}: missing"]


def test_a_half_written_directory_is_no_model(uri: str) -> None:
    write(uri)
    storage.remove(storage.join(uri, modeldir.LINEAGE))
    assert not modeldir.is_model(uri)
    with pytest.raises(ArtifactError, match="no complete model directory"):
        modeldir.open_ref(uri)


def test_other_weights_are_refused(uri: str) -> None:
    write(uri)
    with pytest.raises(ArtifactError, match="expected ffff"):
        modeldir.open_ref(uri, "f" * 64)


def test_weights_that_are_not_finite_are_not_written(uri: str) -> None:
    with pytest.raises(ArtifactError, match="weight a has values that are not finite"):
        write(uri, float("nan"))
    assert not modeldir.is_model(uri)


def test_find_model_takes_the_last_phase(tmp_path: Path) -> None:
    write(str(tmp_path / "01_cognate" / "model"))
    write(str(tmp_path / "02_evomerge" / "model"))
    assert modeldir.find_model(str(tmp_path)).endswith("02_evomerge/model")
    with pytest.raises(ArtifactError, match="neither a model directory nor a run"):
        modeldir.find_model(str(tmp_path / "nothing"))


def test_a_copy_has_the_models_inside_and_a_damaged_one_is_not_copied(uri: str) -> None:
    target, other = f"{uri}-copy", f"{uri}-other"
    write(uri)
    write(f"{uri}/thinking", 2.0)
    modeldir.copy_model(uri, target)
    for part in ("", "/thinking"):
        assert modeldir.open_ref(target + part).sha256 == modeldir.open_ref(uri + part).sha256
    storage.write_bytes(storage.join(uri, modeldir.TOKENIZER), b"other")
    with pytest.raises(ArtifactError, match="tokenizer"):
        modeldir.copy_model(uri, other)
    assert not modeldir.is_model(other)
