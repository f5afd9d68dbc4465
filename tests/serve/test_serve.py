"""The endpoint over HTTP, on Ray Serve, asked by the real OpenAI client."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch

from phases import modeldir
from phases.cognate.loading import model_config
from phases.cognate.presets import PRESETS
from phases.cognate.titan import TinyTitan
from phases.corpus.tokenizer import train_tokenizer
from phases.errors import ArtifactError, ConfigError
from serve.app import ServedModel, serve_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    changes = {"vocab_size": 272, "d_model": 16, "n_layers": 1, "n_heads": 2, "hidden": 16, "segment_len": 16}
    config = PRESETS["nano"].model_copy(update=changes)
    uri = str(tmp_path_factory.mktemp("served") / "model")
    modeldir.save_model(
        uri,
        tensors=dict(TinyTitan(config).state_dict()),
        config=model_config(config),
        tokenizer=train_tokenizer(["def f(x): return x"], 272).to_str(),
        lineage=modeldir.Lineage(phase="cognate", seed=0),
    )
    return uri


@pytest.fixture(scope="module")
def served(model_dir: str, ray_cluster: None) -> Iterator[ServedModel]:
    with serve_model(model_dir, name="tiny", port=0) as endpoint:
        yield endpoint


@pytest.fixture
def client(served: ServedModel) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


def test_models_completions_and_chat(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    made = client.completions.create(model="tiny", prompt="def", max_tokens=5, seed=1, temperature=0)
    assert made.usage is not None
    assert made.usage.completion_tokens <= 5
    chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=5)
    assert chat.choices[0].message.role == "assistant"


def test_streams_agree_with_whole_answers(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="def", max_tokens=9, seed=1)
    pieces = client.completions.create(model="tiny", prompt="def", max_tokens=9, seed=1, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_errors_are_the_clients_own(client: openai.OpenAI, served: ServedModel) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="x", temperature=9)
    assert httpx.get(f"{served.url}/readyz").json() == {"status": "ready"}


def test_addresses_and_models_that_cannot_be_served(model_dir: str, served: ServedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FORGE_API_KEY"):
        serve_model(model_dir, name="x", host="0.0.0.0")
    with pytest.raises(ConfigError, match="cannot be bound"):
        serve_model(model_dir, name="x", port=int(served.url.rpartition(":")[2]))
    with pytest.raises(ArtifactError, match="no complete model directory"):
        serve_model(str(tmp_path), name="x", port=0)
