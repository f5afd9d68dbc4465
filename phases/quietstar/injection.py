"""Where in a text to think: the places that a score ranks highest, and the controls that such a score must beat.

Scores use what is known before the place's next token is: how uncertain the prediction is (`entropy`), or how widely
the last layer looks around (`attention`). `random` places are drawn; `matched` ones are those that entropy chooses in
another text, so that they share its preference for early or late places and nothing else.

Shapes: B rows, C candidate places, P chosen ones, D model width.
"""

import torch
from torch import Tensor

from phases.cognate.places import Places
from phases.cognate.window import SegmentWindow
from phases.quietstar.config import Injection

_CHUNK_BYTES = 1 << 25


@torch.no_grad()
def entropies(outputs: Tensor, head: Tensor) -> Tensor:
    """Return the entropy in nats of the predictions made from `outputs` (..., D) with the `head` (V, D)."""
    parts = list[Tensor]()
    for part in outputs.flatten(0, -2).split(max(1, _CHUNK_BYTES // (4 * len(head)))):
        logs = torch.log_softmax((part @ head.T).float(), -1)
        parts.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(parts).view(outputs.shape[:-1])


def choose(scores: Tensor, share: float, injection: Injection) -> Tensor:
    """Return the indices (B, P) of the candidates to think at, ascending, from `scores` (B, C)."""
    count = max(1, round(share * scores.shape[1]))
    match injection:
        case "all":
            return torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
        case "random":
            scores = torch.rand(scores.shape).to(scores.device)
        case "matched":
            scores = scores.roll(1, 0)
        case "entropy" | "attention":
            pass
    return scores.topk(count, dim=1).indices.sort(1).values


def lengths_for(entropy: Tensor, shortest: int, longest: int, vocab_size: int) -> Tensor:
    """Return how long to think where predictions have the `entropy` (...): linear in its share of the largest one."""
    share = entropy / torch.log(torch.tensor(float(vocab_size)))
    return (shortest + share.clamp(0, 1) * (longest - shortest)).round().long()


class WatchedWindow(SegmentWindow):
    """A segment window that notes how wide the first ponder step's attention is in one layer, in nats."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.noted = torch.empty(0)  # (B, T, 1) of the current segment, mean over heads

    def attend(self, step: int, layer: int, places: Places, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = super().attend(step, layer, places, q, k, v)
        if step == 0 and layer == self.layer:
            with torch.no_grad():
                queries = q.unflatten(0, places.shape).transpose(1, 2)
                scores = (queries @ self.seen(step, layer)[0].transpose(-1, -2)).float() * q.shape[-1] ** -0.5
                if (mask := places.groups[0].mask) is not None:
                    scores = scores.masked_fill(~mask, -torch.inf)
                p = torch.softmax(scores, -1)
                self.noted = -torch.xlogy(p, p).sum(-1).mean(1).unsqueeze(-1)
        return attended
