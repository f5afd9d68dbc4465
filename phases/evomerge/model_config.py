"""The `config.json` of a merged model: the base's, with the number of layers, the head and the dtype that it has."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from phases.errors import ArtifactError
from phases.evomerge.checkpoint import CONFIG, Checkpoint

_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_PER_LAYER = ("layer_types",)
_TIED = ("tie_word_embeddings", "tied")
_DTYPE = ("dtype", "torch_dtype")


def merged_config(
    donor: Checkpoint, order: Sequence[int], dtypes: set[torch.dtype], *, has_head: bool
) -> dict[str, Any]:
    """Return the configuration of a model whose layer n comes from layer `order[n]`, with weights of `dtypes`.

    Raises `ArtifactError` where the depth changes and no key holds the old one.
    """
    config: dict[str, Any] = json.loads(json.dumps(donor.config))
    if not config:
        return {}
    before = donor.stacks.depth
    if len(order) != before:
        keys = [key for key in _DEPTH if config.get(key) == before]
        if not keys:
            raise ArtifactError(f"{donor.uri}/{CONFIG}: no layer count of {before} in {', '.join(_DEPTH)}; add it")
        config |= dict.fromkeys(keys, len(order))
    for key in _PER_LAYER:
        if isinstance(kinds := config.get(key), list) and len(kinds) == before and max(order, default=0) < before:
            config[key] = [kinds[layer] for layer in order]
    if donor.embedding is not None and donor.tied is has_head:
        config[next((key for key in _TIED if key in config), _TIED[0])] = not has_head
    if len(dtypes) == 1:
        name = str(next(iter(dtypes))).removeprefix("torch.")
        config |= {key: name for key in _DTYPE if key in config}
    return config
