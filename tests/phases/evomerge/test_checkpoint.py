"""Checkpoints: the same tensors as the safetensors library reads, and files that are not what they should be."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from phases import storage
from phases.errors import ArtifactError
from phases.evomerge.checkpoint import DTYPES, INDEX, SINGLE, combined_digest, open_checkpoint

EXAMPLE = {
    "model.embed_tokens.weight": torch.arange(32.0).view(8, 4),
    "model.layers.0.w.weight": torch.arange(4.0).bfloat16(),
    "model.layers.1.w.weight": torch.arange(3).half(),
    "steps": torch.tensor([7, -1]),
    "mask": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


def write_single(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    weight_map = {name: f"model-{n % 3 + 1:05}-of-00003.safetensors" for n, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name, where in weight_map.items() if where == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("write", [write_single, write_shards])
def test_reads_what_was_written(write: object, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m", EXAMPLE))  # type: ignore[operator]
    assert set(checkpoint.names()) == set(EXAMPLE)
    for name, expected in EXAMPLE.items():
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (tuple(expected.shape), expected.dtype)
        assert torch.equal(checkpoint.read(name), expected)


def test_opens_a_single_file_of_any_name(tmp_path: Path) -> None:
    save_file(EXAMPLE, tmp_path / "weights.safetensors")
    for uri in (tmp_path, tmp_path / "weights.safetensors"):
        assert torch.equal(open_checkpoint(uri).read("steps"), EXAMPLE["steps"])


@settings(max_examples=25, deadline=None)
@given(
    array=hnp.arrays("float32", hnp.array_shapes(max_dims=3, max_side=40), elements=st.floats(-4, 4, width=32)),
    dtype=st.sampled_from(sorted(set(DTYPES.values()), key=str)),
)
def test_any_shape_and_dtype(tmp_path_factory: pytest.TempPathFactory, array: object, dtype: torch.dtype) -> None:
    tensor = torch.as_tensor(array).to(dtype)
    folder = write_single(tmp_path_factory.mktemp("m"), {"a": torch.ones(1, dtype=torch.int8), "b": tensor})
    assert torch.equal(open_checkpoint(folder).read("b"), tensor)


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_single(tmp_path, EXAMPLE))
    checkpoint.read("steps").zero_()
    assert torch.equal(checkpoint.read("steps"), EXAMPLE["steps"])


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    data = torch.arange(5.0)
    header = json.dumps({"x": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}).encode()
    header += b" " * (-len(header) % 8 + 3)
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + data.numpy().tobytes())
    assert torch.equal(open_checkpoint(tmp_path).read("x"), data)


def test_digest(tmp_path: Path) -> None:
    single, sharded = write_single(tmp_path / "a", EXAMPLE), write_shards(tmp_path / "b", EXAMPLE)
    assert open_checkpoint(single).digest() == storage.sha256(str(single / SINGLE))
    hashes = {file.name: storage.sha256(str(file)) for file in sharded.glob("*.safetensors")}
    assert len(hashes) == 3
    assert open_checkpoint(sharded).digest() == combined_digest(hashes)


@pytest.mark.parametrize(
    ("head", "config", "tied"),
    [
        (False, {}, True),
        (False, {"tie_word_embeddings": True}, True),
        (False, {"tied": True}, True),
        (False, {"tie_word_embeddings": False}, False),
        (True, {}, False),
        (True, {"tie_word_embeddings": False}, False),
        (True, {"tie_word_embeddings": True}, True),
    ],
)
def test_tied(tmp_path: Path, head: bool, config: dict[str, object], tied: bool) -> None:
    tensors = EXAMPLE | ({"lm_head.weight": torch.ones(8, 4)} if head else {})
    checkpoint = open_checkpoint(write_single(tmp_path, tensors, **config))
    assert checkpoint.tied is tied
    assert checkpoint.embedding == "model.embed_tokens.weight"
    assert checkpoint.stacks == (("model.layers.",), 2)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere: no such folder; name a local"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=f"neither {SINGLE} nor"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="pickle"):
        open_checkpoint(tmp_path)
    with pytest.raises(ArtifactError, match="no tensor 'other'"):
        open_checkpoint(write_single(tmp_path / "m", EXAMPLE)).read("other")


def test_missing_shards_and_entries_are_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m", EXAMPLE)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["extra"] = "model-00001-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r"model-00001-of-00003.safetensors: no tensor 'extra'"):
        open_checkpoint(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    del index["weight_map"]["extra"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=r"model-00002-of-00003.safetensors: missing"):
        open_checkpoint(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(ArtifactError, match="no weight_map"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "torn at"),
        (lambda data: data[:20], "not a valid safetensors file"),
        (lambda data: b"", "not a valid safetensors file"),
        (lambda data: b"\xff" * len(data), "not a valid safetensors file"),
        (lambda data: data[:8] + b"?" + data[9:], "not a valid safetensors header"),
        (lambda data: data.replace(b'"I64"', b'"I99"'), "dtype I99 is not supported"),
        (lambda data: data.replace(b"[8,4]", b"[8,5]"), "do not hold F32"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, message: str) -> None:
    file = write_single(tmp_path, EXAMPLE) / SINGLE
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(file) in str(caught.value)
