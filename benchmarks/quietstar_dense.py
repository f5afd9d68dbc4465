"""The dense-mask implementation of parallel thoughts, as published: the peer of the merged attention.

Each step appends one token to all places and lets it attend to everything so far under a mask of T x (W + s T), whose
thought part is diagonal (ezelikman/quiet-star). All else is shared with `phases.quietstar`, so that times differ in
the attention alone; in training it also keeps the graph of every step, where ours scores once.
"""

import torch
from torch import Tensor

from phases.cognate.attention import attend
from phases.cognate.titan import TinyTitan
from phases.quietstar.chain import START_ID
from phases.quietstar.config import SamplingConfig
from phases.quietstar.sampling import next_tokens, thinkable
from phases.quietstar.window import Stage, Thoughts


class DenseThoughts(Thoughts):
    """Parallel thoughts with one softmax over the prefix and all tokens of all thoughts."""

    mask = torch.empty(0, 0, dtype=torch.bool)

    def merged(self, q: Tensor, own: tuple[Tensor, Tensor], prefix: tuple[Tensor, Tensor]) -> Tensor:
        """Return what `q` (B, M, H, 1, K) attends to."""
        k, v = (
            torch.cat([text, x.permute(0, 2, 3, 1, 4).flatten(2, 3)], 2) for text, x in zip(prefix, own, strict=True)
        )
        if self.mask.shape[1] != k.shape[2]:  # once for all layers
            seen = torch.arange(prefix[0].shape[2]) < self.reach[0].unsqueeze(1)
            own_only = torch.eye(own[0].shape[1], dtype=torch.bool).repeat(1, own[0].shape[3])
            self.mask = torch.cat([seen, own_only], dim=1)  # (M, W + C M)
        return attend(q[:, :, :, 0].transpose(1, 2), k, v, self.mask).transpose(1, 2).unsqueeze(3)


def think_densely(model: TinyTitan, stage: Stage, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return sampled thoughts (B, M, `length`) and their outputs, with a graph where one is wanted."""
    window, allowed = DenseThoughts(stage, positions), thinkable(len(model.head_weight))
    token, tokens, outputs = torch.full_like(positions, START_ID), list[Tensor](), list[Tensor]()
    for _ in range(length):
        outputs.append(window.read(model, model.embedding(token).unsqueeze(2)))
        with torch.no_grad():
            logits = outputs[-1].flatten(0, 2) @ model.head_weight.T
            token = next_tokens(logits, allowed, SamplingConfig()).view_as(positions)
        tokens.append(token)
    return torch.stack(tokens, dim=2), torch.cat(outputs, dim=2)
