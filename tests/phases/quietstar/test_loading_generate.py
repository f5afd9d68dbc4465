"""Thinking models on disk, and generation with thoughts: what training saw, what it costs, what it leaves behind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from phases import modeldir, storage
from phases.cognate.generate import Sampling, stream
from phases.cognate.loading import model_config
from phases.cognate.titan import TinyTitan
from phases.corpus.tokenizer import encode, train_tokenizer
from phases.errors import ArtifactError, ConfigError
from phases.quietstar.carry import carry_thinking
from phases.quietstar.config import LearningConfig, ThoughtConfig
from phases.quietstar.generate import GREEDY, Thoughtful, reader_for, thoughtful_stream
from phases.quietstar.loading import LoadedThinker, can_think, load_thinker, require_markers, save_thinker
from phases.quietstar.sources import sampled
from phases.quietstar.thinker import Thinker

ModelOf = Callable[..., TinyTitan]
PROMPT = "def read(path):\n    return open(path)"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([PROMPT] * 3, 280)


def saved(model: TinyTitan, tokenizer: Tokenizer, folder: Path, threshold: float = 4.0) -> str:
    torch.manual_seed(1)
    thinker = Thinker(model, ThoughtConfig(parallel=2, length=3, lookahead=2), LearningConfig(marker_scale=5.0))
    with torch.no_grad():
        thinker.mixing.layers[-1].weight.normal_()
        thinker.markers.add_(0.05)
    lineage = modeldir.Lineage(phase="quietstar", seed=0)
    uri = str(folder / "model")
    save_thinker(uri, thinker, tokenizer=tokenizer.to_str(), lineage=lineage, entropy_threshold=threshold, helps=True)
    return uri


@pytest.fixture
def loaded(model_of: ModelOf, tokenizer: Tokenizer, tmp_path: Path) -> LoadedThinker:
    return load_thinker(saved(model_of(2, vocab_size=tokenizer.get_vocab_size()), tokenizer, tmp_path), "cpu")


def test_a_thinker_comes_back_as_it_was(model_of: ModelOf, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of(2, vocab_size=tokenizer.get_vocab_size())
    first = load_thinker(saved(model, tokenizer, tmp_path), "cpu")
    assert first.entropy_threshold == 4.0
    assert first.thinker.config.length == 3
    again = load_thinker(str(tmp_path / "model"), "cpu")
    rows = torch.randint(16, 270, (2, 12), generator=torch.Generator().manual_seed(0))
    mixed = [found.thinker.observe(rows, sampled(GREEDY)).mixed for found in (first, again)]
    assert torch.equal(*mixed)


def test_parts_of_two_models_are_refused(model_of: ModelOf, tokenizer: Tokenizer, tmp_path: Path) -> None:
    size = tokenizer.get_vocab_size()
    one = saved(model_of(2, vocab_size=size), tokenizer, tmp_path / "one")
    two = saved(model_of(3, vocab_size=size), tokenizer, tmp_path / "two")
    (tmp_path / "one/model/thinking").rename(tmp_path / "one/before")
    assert not can_think(one)
    with pytest.raises(ArtifactError, match="not learned to think"):
        load_thinker(one)
    Path(two, "thinking").rename(Path(one, "thinking"))
    with pytest.raises(ArtifactError, match="belongs to another model"):
        load_thinker(one)


def test_a_tokenizer_without_the_markers_is_named() -> None:
    from tokenizers.models import BPE

    with pytest.raises(ArtifactError, match="startthought"):
        require_markers(Tokenizer(BPE()), "some model")


@pytest.mark.parametrize("length", [5, 8, 9, 16, 20])
def test_inference_thinks_what_training_thought(loaded: LoadedThinker, tokenizer: Tokenizer, length: int) -> None:
    """Behind any token, the last one of a segment included."""
    rows = torch.randint(16, 270, (1, length + 2), generator=torch.Generator().manual_seed(length))
    thinker = loaded.thinker
    thinker.config = thinker.config.model_copy(update={"injection": "all"})
    with torch.no_grad():
        seen = thinker.observe(rows, sampled(GREEDY))
        wanted = seen.mixed[0, length - 1, 0, 0] @ thinker.head_weight.T
    reader = Thoughtful(loaded, "always")
    found, _ = reader.read_on(thinker.model, rows[0, :length].tolist(), thinker.model.empty_state(1))
    assert torch.allclose(found, wanted, atol=3e-5)
    assert reader.thoughts[0].text == tokenizer.decode(seen.tokens[0, length - 1, 0].tolist())
    assert reader.thoughts[0].weight == pytest.approx(float(seen.weight[0, length - 1, 0, 0]), abs=1e-5)


@pytest.mark.parametrize("mode", ["never", "auto", "always"])
def test_thoughts_cost_what_is_said_and_leave_no_trace(loaded: LoadedThinker, mode: str) -> None:
    prompt, sampling = encode(loaded.tokenizer, PROMPT), Sampling(max_new_tokens=12, temperature=0)
    loaded = LoadedThinker(loaded.ref, loaded.thinker, loaded.tokenizer, entropy_threshold=4.2)
    reader = Thoughtful(loaded, mode)  # type: ignore[arg-type]
    generation = thoughtful_stream(reader, prompt, sampling)
    text = "".join(generation.pieces)
    assert reader.said <= 12
    assert reader.cost == 5 * len(reader.thoughts) / reader.said
    if mode == "never":
        plain = stream(loaded.thinker.model, loaded.tokenizer, prompt, sampling)
        assert "".join(plain.pieces) == text
        assert reader.thoughts == []
    elif mode == "always":
        assert [record.said for record in reader.thoughts] == list(range(reader.said))
    else:
        assert all(record.entropy >= 4.2 for record in reader.thoughts)


def test_auto_thinks_nowhere_where_thoughts_have_not_helped(loaded: LoadedThinker) -> None:
    sampling = Sampling(max_new_tokens=6, temperature=0)
    for helps in (True, False):
        unsure = LoadedThinker(loaded.ref, loaded.thinker, loaded.tokenizer, entropy_threshold=0.0, helps=helps)
        reader = Thoughtful(unsure, "auto")
        list(thoughtful_stream(reader, encode(loaded.tokenizer, PROMPT), sampling).pieces)
        assert bool(reader.thoughts) == helps


def test_readers_are_for_who_can_think(loaded: LoadedThinker) -> None:
    assert reader_for(None, "auto") is None
    assert reader_for(loaded, "never") is None
    with pytest.raises(ConfigError, match="has not learned to think"):
        reader_for(None, "always")
    reader = reader_for(loaded, "always")
    assert reader is not None
    list(thoughtful_stream(reader, [40, 41], Sampling(max_new_tokens=2, temperature=0)).pieces)
    shown, hidden = (reader.summary(with_thoughts=asked) for asked in (True, False))
    assert hidden == {"mode": "always", "thought_tokens": 10, "per_token_said": 5.0}
    assert [thought["said"] for thought in shown["thoughts"]] == [0, 1]


def test_a_changed_model_thinks_with_the_same_head_and_markers(
    model_of: ModelOf, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    size = tokenizer.get_vocab_size()
    parent, changed = saved(model_of(2, vocab_size=size), tokenizer, tmp_path), model_of(3, vocab_size=size)
    uri, lineage = str(tmp_path / "changed"), modeldir.Lineage(phase="bitnet", seed=0)
    config, tensors = model_config(changed.config), changed.state_dict()
    modeldir.save_model(uri, tensors=tensors, config=config, tokenizer=tokenizer.to_str(), lineage=lineage)
    rows = torch.randint(16, 270, (4, 20), generator=torch.Generator().manual_seed(0))
    ref = carry_thinking(parent, uri, rows, np.ones(size, np.int64), lineage)
    before, after = load_thinker(parent, "cpu"), load_thinker(uri, "cpu")
    assert torch.equal(before.thinker.markers, after.thinker.markers)
    assert torch.equal(before.thinker.mixing.layers[-1].weight, after.thinker.mixing.layers[-1].weight)
    assert torch.equal(after.thinker.model.embedding.weight, changed.embedding.weight)
    assert after.entropy_threshold != before.entropy_threshold
    assert ref.sha256 == modeldir.open_ref(storage.join(uri, "thinking")).sha256
    assert ref.format == "quietstar"


def test_thinking_changes_no_state(loaded: LoadedThinker) -> None:
    model, ids = loaded.thinker.model, list(range(20, 39))
    after = []
    for mode in ("never", "always"):
        state = model.empty_state(1)
        reader = Thoughtful(loaded, mode)  # type: ignore[arg-type]
        reader.read_on(model, ids, state)
        after.append(Thoughtful(loaded, "never").read_on(model, [40, 41], state)[0])
    assert torch.equal(*after)
