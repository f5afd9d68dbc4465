"""Bits per byte of held-out text: of a model in torch, and of an exported file as it runs.

Text is the first tokens of a split, cut into streams that carry their state from end to end, as phase 1 measures it.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from phases.bitnet.config import HeldOutConfig
from phases.bitnet.onnx_runtime import OnnxModel
from phases.cognate.titan import TinyTitan
from phases.corpus.packed import Corpus
from phases.errors import ArtifactError

Tokens = npt.NDArray[np.int64]


def streams(corpus: Corpus, split: str, config: HeldOutConfig) -> Tokens:
    """Return (streams, length + 1) tokens of a split. Raises `ArtifactError` where it has too few."""
    tokens = corpus.tokens(split)[: config.tokens]
    length = len(tokens) // config.streams
    if length < 2:
        raise ArtifactError(f"{split} split has {len(tokens)} tokens, too few for {config.streams} streams")
    return tokens[: length * config.streams].reshape(config.streams, length).astype(np.int64)


@torch.inference_mode()
def bits_per_byte(model: TinyTitan, rows: Tokens, token_bytes: Tokens) -> float:
    """Return total bits over total bytes of `rows` (B, T + 1) under a model in evaluation mode."""
    nats = model.eval().evaluate(torch.from_numpy(rows).to(model.embedding.weight.device)).nll
    return _ratio(float(nats.double().sum()), rows, token_bytes)


def file_bits_per_byte(model: OnnxModel, rows: Tokens, token_bytes: Tokens) -> float:
    """Return the same of an exported file."""
    nats = 0.0
    for row in rows:
        logits = torch.from_numpy(model.stream().read(row[:-1].tolist()).logits)
        targets = torch.from_numpy(row[1:])
        nats += float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
    return _ratio(nats, rows, token_bytes)


def _ratio(nats: float, rows: Tokens, token_bytes: Tokens) -> float:
    return nats / math.log(2) / float(token_bytes[rows[:, 1:]].sum())
