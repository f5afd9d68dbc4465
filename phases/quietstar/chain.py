"""A thought as tokens between its markers, with the true tokens behind it by which it is judged.

    <|startthought|> t_1 ... t_n <|endthought|> x_1 ... x_(A - 1)

The tokens t_2 ... are predicted from t_1 ..., the text x_1 ... x_A from the end marker on. Thoughts of one batch may be
of different lengths; what is behind the shorter ones is padding, which no token before it can see.

Shapes: B rows, M thoughts of a row, n tokens of the longest, A lookahead.
"""

import torch
from torch import Tensor

from phases.corpus.special import END_THOUGHT, PAD, SPECIAL_IDS, START_THOUGHT

START_ID, END_ID, PAD_ID = SPECIAL_IDS[START_THOUGHT], SPECIAL_IDS[END_THOUGHT], SPECIAL_IDS[PAD]


def assemble(thoughts: Tensor, lengths: Tensor, coming: Tensor) -> Tensor:
    """Return the chains (B, M, n + A + 1) of `thoughts` (B, M, n) with `lengths` (B, M), before `coming` (B, M, A)."""
    places = torch.arange(thoughts.shape[2] + coming.shape[2] + 1, device=thoughts.device)
    behind = places - lengths.unsqueeze(-1) - 1  # 0 at the end marker, (B, M, L)
    inside = (places - 1).clamp(0, thoughts.shape[2] - 1).expand_as(behind)
    after = (behind - 1).clamp(0, coming.shape[2] - 1)
    chain = torch.where(behind < 0, thoughts.gather(2, inside), coming.gather(2, after))
    chain = chain.masked_fill(behind == 0, END_ID).masked_fill(behind >= coming.shape[2], PAD_ID)
    chain[:, :, 0] = START_ID
    return chain


def talking(outputs: Tensor, lengths: Tensor, lookahead: int) -> Tensor:
    """Return those of a chain's `outputs` (B, M, L, D) that predict the coming text, (B, M, A, D)."""
    places = lengths.unsqueeze(-1) + 1 + torch.arange(lookahead, device=outputs.device)
    found = rows_at(outputs.flatten(0, 1), places.flatten(0, 1))
    return found.view(*outputs.shape[:2], *found.shape[1:])


def rows_at(values: Tensor, places: Tensor) -> Tensor:
    """Return what `values` (N, L, D) has at `places` (N, A), (N, A, D); as whole rows, whose gradient is quick."""
    first = torch.arange(values.shape[0], device=values.device).unsqueeze(1) * values.shape[1]
    return values.flatten(0, 1).index_select(0, (first + places).flatten()).view(*places.shape, -1)


def coming_text(rows: Tensor, positions: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of `rows` (B, T + 1) behind `positions` (B, M), (B, M, A), and which of them exist."""
    places = positions.unsqueeze(-1) + 1 + torch.arange(lookahead, device=rows.device)
    exist = places < rows.shape[1]
    tokens = rows.gather(1, places.clamp_max(rows.shape[1] - 1).flatten(1)).view_as(places)
    return tokens, exist & (tokens != PAD_ID)
