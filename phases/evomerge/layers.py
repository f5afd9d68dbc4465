"""What the names of a checkpoint's tensors say: which numbered layer each belongs to, and which is embedding or head.

No list of architectures: the layers are the largest set of names that differ in their first number
(`model.layers.7.mlp.up_proj.weight`, `transformer.h.7.attn.c_attn.weight`, `blocks.7.qkv.weight`), counted from 0.
An encoder and a decoder of the same depth are two such stacks; what is in no stack belongs to the ends of the model.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")
_HEADS = frozenset({"lm_head", "head", "embed_out", "output"})
_TOKENS = frozenset({"embed_tokens", "embed_in", "embedding", "word_embeddings", "wte", "tok_embeddings", "shared"})


class Place(NamedTuple):
    """The layer that a tensor is in: `prefix`, the layer's number and the rest of the name."""

    prefix: str
    layer: int
    suffix: str


class Stacks(NamedTuple):
    """The numbered layers of a checkpoint: `depth` of them in each of the stacks that the `prefixes` name."""

    prefixes: tuple[str, ...]
    depth: int

    def place(self, name: str) -> Place | None:
        """Return where in the stacks a tensor is; None at the ends of the model."""
        found = split_name(name)
        return found if found is not None and found.prefix in self.prefixes else None


def split_name(name: str) -> Place | None:
    """Cut a name at its first number: `model.layers.3.mlp.weight` -> (`model.layers.`, 3, `.mlp.weight`)."""
    if (number := _NUMBER.search(name)) is None:
        return None
    return Place(name[: number.start()], int(number[0]), name[number.end() :])


def find_stacks(names: Iterable[str]) -> Stacks:
    """Return the stack with most tensors, and those of the same depth with at least half as many."""
    places = [place for name in names if (place := split_name(name)) is not None]
    tensors = Counter(place.prefix for place in places)
    depths = {prefix: {place.layer for place in places if place.prefix == prefix} for prefix in tensors}
    whole = [prefix for prefix in tensors if depths[prefix] == set(range(len(depths[prefix])))]
    if not whole:
        return Stacks((), 0)
    main = max(whole, key=tensors.__getitem__)
    peers = [p for p in whole if depths[p] == depths[main] and 2 * tensors[p] >= tensors[main]]
    return Stacks(tuple(peers), len(depths[main]))


def is_head(name: str) -> bool:
    """Say whether a tensor is the matrix that makes logits."""
    return _module(name) in _HEADS and name.endswith(".weight")


def is_token_embedding(name: str) -> bool:
    """Say whether a tensor is the input embedding of the vocabulary."""
    return _module(name) in _TOKENS and name.endswith(".weight")


def comes_first(name: str) -> bool:
    """Say whether a tensor outside the layers is used before them (any embedding) and not after them."""
    parts = name.split(".")
    return not is_head(name) and any("embed" in part or part in ("wte", "wpe", "shared") for part in parts)


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]
