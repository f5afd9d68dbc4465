"""Which token a thought goes on with: nucleus sampling, its probabilities, and greed that is greedy.

The nucleus is the smallest set of likeliest tokens whose mass reaches `top_p` (Holtzman et al. 2020). What was
sampled is scored under the same truncated and renormalised distribution, or its gradient would be that of another
policy.

Shapes: N places, V vocabulary.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from phases.corpus.special import SPECIAL_TOKENS
from phases.quietstar.config import SamplingConfig
from phases.quietstar.kernels import draw, least_of_nucleus

_CHUNK_BYTES = 1 << 25  # of logits that are held at once when scoring


def thinkable(vocab_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return which tokens may be part of a thought, (V,): all but the special ones."""
    return torch.arange(vocab_size, device=device) >= len(SPECIAL_TOKENS)


def next_tokens(logits: Tensor, allowed: Tensor, config: SamplingConfig) -> Tensor:
    """Return a token for each row of `logits` (N, V), drawn with torch's own generator."""
    if config.temperature == 0:
        return logits.masked_fill(~allowed, -torch.inf).argmax(-1)
    scaled = logits.float() if config.temperature == 1 else logits.float() / config.temperature
    p = torch.softmax(scaled.index_fill(1, (~allowed).nonzero()[:, 0], -torch.inf), -1)
    if p.device.type == "cpu":
        tokens = torch.empty(len(p), dtype=torch.int64)
        draw(p.numpy(), config.top_p, torch.rand(len(p)).numpy(), tokens.numpy())
        return tokens
    p = p.masked_fill_(p < nucleus(p, config.top_p), 0)
    total = p.cumsum_(-1)
    drawn = torch.rand(len(p), 1).to(p.device) * total[:, -1:]  # from the CPU's generator, as everywhere
    # A draw of exactly the total, which rounding allows, would point behind the last token.
    return torch.searchsorted(total, torch.minimum(drawn, total[:, -1:].nextafter(drawn.new_zeros(())))).squeeze(-1)


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """Return the least probability in the nucleus of each row of `p` (N, V) in fp32, (N, 1); 0 where all are in it."""
    if top_p >= 1:
        return p.new_zeros(len(p), 1)
    if p.device.type == "cpu":
        least = torch.empty(len(p))
        least_of_nucleus(p.contiguous().numpy(), top_p, least.numpy())
        return least.unsqueeze(1)
    return ordered_nucleus(p, top_p)


def ordered_nucleus(p: Tensor, top_p: float) -> Tensor:
    """Return the same from an order of all tokens, on any device."""
    ordered = p.sort(dim=-1, descending=True).values
    inside = ordered.cumsum(-1) - ordered < top_p
    return ordered.gather(1, inside.sum(-1, keepdim=True) - 1)


def log_probabilities(hidden: Tensor, head: Tensor, tokens: Tensor, allowed: Tensor, config: SamplingConfig) -> Tensor:
    """Return the log-probability (N,) of each of `tokens` (N,) as `next_tokens` draws it, differentiable.

    `hidden` (N, D) times `head` (V, D) are the logits. Those of a chunk of places exist at once and are computed again
    in the backward pass.
    """
    size = max(1, _CHUNK_BYTES // (4 * len(head)))
    parts = [
        checkpoint(_log_probability, h, head, t, allowed, config, use_reentrant=False)
        for h, t in zip(hidden.split(size), tokens.split(size), strict=True)
    ]
    return torch.cat(parts)


def _log_probability(hidden: Tensor, head: Tensor, tokens: Tensor, allowed: Tensor, config: SamplingConfig) -> Tensor:
    logits = (hidden @ head.T).float() / (config.temperature or 1.0)
    with torch.no_grad():
        p = torch.softmax(logits.masked_fill(~allowed, -torch.inf), -1)
        outside = (p < nucleus(p, config.top_p)) | ~allowed
        outside.scatter_(1, tokens.unsqueeze(1), False)  # rounding may put what was drawn just outside
    return torch.log_softmax(logits.masked_fill(outside, -torch.inf), -1).gather(1, tokens.unsqueeze(1)).squeeze(1)
