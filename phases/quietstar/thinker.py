"""A TinyTitan that thinks: parallel thoughts at chosen places of a text, mixed into its predictions, and their losses.

One pass over a text gives its own predictions. Thoughts are drawn without a graph, then read with the text behind them
in one pass that has one (teacher forcing), which gives both the mixed predictions and the thoughts' probabilities. The
markers' embeddings belong to the thinker, so that training and inference cannot differ in them.

Shapes: B rows, T tokens, P places of a row at which it thinks, G parallel thoughts, n thought tokens, A lookahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phases.cognate.titan import Segment, TinyTitan, at_step
from phases.errors import ConfigError
from phases.quietstar.chain import END_ID, START_ID, assemble, coming_text, rows_at, talking
from phases.quietstar.config import LearningConfig, ThoughtConfig
from phases.quietstar.drift import drift
from phases.quietstar.injection import WatchedWindow, choose, entropies, lengths_for
from phases.quietstar.mixing import MixingHead, mix
from phases.quietstar.reinforce import advantages, policy_loss
from phases.quietstar.sampling import log_probabilities, thinkable
from phases.quietstar.sources import Source, sampled
from phases.quietstar.window import Stage, Thoughts
from phases.training.losses import linear_cross_entropy


@dataclass(frozen=True)
class Observed:
    """A text with thoughts."""

    segments: Sequence[Segment]
    base: Tensor  # (B, T, D), outputs without thoughts
    base_nll: Tensor  # (B, T), nats, without gradient
    positions: Tensor  # (B, P)
    tokens: Tensor  # (B, P, G, n)
    lengths: Tensor  # (B, P)
    inner: Tensor  # (B, P, G, n, D), outputs that predict the thoughts' tokens
    weight: Tensor  # (B, P, G, A), of the thought in the mix
    mixed: Tensor  # (B, P, G, A, D), outputs that predict the text behind the thought
    targets: Tensor  # (B, P, A), that text
    exist: Tensor  # (B, P, A), whether there is such a token


class Thinker(nn.Module):
    """The model of phase 3."""

    def __init__(
        self,
        model: TinyTitan,
        config: ThoughtConfig,
        learning: LearningConfig | None = None,
        *,
        source: Source | None = None,
        reference: TinyTitan | None = None,
    ) -> None:
        """Think with `model`. `source` replaces its own thoughts; `reference` is what `kl_weight` ties it to.

        Raises `ConfigError` where thoughts do not fit into the model's context.
        """
        super().__init__()
        self.config, self.learning = config, learning or LearningConfig()
        longest = config.length + config.lookahead + 1
        if longest > model.config.segment_len:
            fix = f"use at most {model.config.segment_len - config.lookahead - 1}"
            raise ConfigError.of("length", config.length, "thoughts do not fit into a segment of the model", fix)
        self.model = model
        self.source = source or sampled(config.sampling)
        self._reference = [reference] if reference is not None else []  # in a list: none of this module's parameters
        width = model.config.d_model
        self.mixing = MixingHead(width, self.learning.mixing_hidden, self.learning.initial_weight)
        rows = model.embedding.weight.detach()[[START_ID, END_ID]]
        self.markers = nn.Parameter(rows / self.learning.marker_scale)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, D)."""
        return self.model.head_weight

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (..., D) of chain tokens (...)."""
        embedded: Tensor = self.model.embedding(tokens)
        for marker, row in zip((START_ID, END_ID), self.markers * self.learning.marker_scale, strict=True):
            embedded = torch.where((tokens == marker).unsqueeze(-1), row.to(embedded.dtype), embedded)
        return embedded

    def read(self, window: Thoughts, embedded: Tensor) -> Tensor:
        """Return the outputs of embedded chain tokens, both (B, M, A, D)."""
        return window.read(self.model, embedded)

    def observe(self, rows: Tensor, source: Source | None = None, config: ThoughtConfig | None = None) -> Observed:
        """Read `rows` (B, T + 1), inputs and targets shifted by one, and think at the places that the config chooses.

        There is no place behind the last input, since thoughts are judged by what follows. `source` and `config` stand
        in for the thinker's own.
        """
        config, source = config or self.config, source or self.source
        segments, thoughts = list[Segment](), list[_Thought]()
        watched = WatchedWindow(self.model.config.n_layers - 1) if config.injection == "attention" else None
        last: Tensor | None = None
        for segment in self.model.segments(rows, watched):
            segments.append(segment)
            # A thought is of the segment of the token that comes next, so the first is behind the segment before.
            outputs = segment.outputs if watched is None else torch.cat([segment.outputs, watched.noted], dim=2)
            ahead = outputs if last is None else torch.cat([last, outputs], dim=1)
            first, last = segment.start - ahead.shape[1] + outputs.shape[1], outputs[:, -1:]
            if ahead.shape[1] > 1:
                thoughts.append(self._think(rows, segment, first, ahead[:, :-1], source, config))
        if not thoughts:
            raise ConfigError.of("rows", tuple(rows.shape), "too short to think in", "give at least three tokens")
        base = torch.cat([segment.outputs for segment in segments], dim=1)
        nll = torch.cat([at_step(segment.losses, segment.ran.steps) for segment in segments], dim=1)
        return self._mixed(segments, base, nll, _Thought.together(thoughts))

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the training loss of `rows` (B, T + 1) and metrics.

        The text's own loss, the likelihood of what follows each thought, and REINFORCE on the thoughts with the nats
        that each saved as reward. The last two are one gradient: that of the expected loss behind a thought.
        """
        seen, learning = self.observe(rows), self.learning
        text_loss, metrics = self.model.loss_of(seen.segments)
        exist = seen.exist.unsqueeze(2).expand_as(seen.weight)
        count = exist.sum().clamp_min(1)
        likelihood, nll = self.nll(seen, exist / count)
        base = _at_places(seen.base_nll.unsqueeze(-1), seen.positions, exist.shape[3])[..., 0]  # (B, P, A)
        rewards = ((base.unsqueeze(2) - nll) * exist).sum(-1)  # (B, P, G)
        total = learning.base_weight * text_loss + likelihood
        metrics = metrics | {
            "thought_gain": (rewards.sum() / count).detach(),
            "thought_nll": ((nll * exist).sum() / count).detach(),
            "mixing_weight": seen.weight.detach().float().mean(),
            "thought_tokens": seen.lengths.sum().float() * seen.tokens.shape[2],
        }
        if learning.policy_weight:
            advantage, log_probs = advantages(rewards, positive_only=learning.positive_only), self.log_probs(seen)
            total = total + policy_loss(
                log_probs, advantage, log_probs.new_full(log_probs.shape, learning.policy_weight) / count
            )
            metrics["advantage"] = advantage.abs().mean()
            metrics["thought_entropy"] = -log_probs.detach().sum() / metrics["thought_tokens"]
        if learning.kl_weight and self._reference:
            total = total + learning.kl_weight * drift(self._reference[0], rows, seen.base, self.head_weight)
        return total, metrics

    def nll(self, seen: Observed, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the nats of the text behind the thoughts, and the nats alone (B, P, G, A)."""
        targets = seen.targets.unsqueeze(2).expand_as(weights)
        loss, nll = linear_cross_entropy(
            seen.mixed.flatten(0, 3), self.head_weight, targets.flatten(), weights.flatten()
        )
        return loss, nll.view_as(weights)

    def log_probs(self, seen: Observed) -> Tensor:
        """Return the log-probability (B, P, G) of each thought under the policy that drew it."""
        allowed = thinkable(len(self.head_weight), seen.tokens.device)
        inner, tokens = seen.inner.flatten(0, 3), seen.tokens.flatten()
        allowed = allowed | torch.zeros_like(allowed).index_fill(0, tokens.unique(), True)  # controls use others too
        found = log_probabilities(inner, self.head_weight, tokens, allowed, self.config.sampling)
        within = torch.arange(seen.tokens.shape[3], device=tokens.device) < seen.lengths[:, :, None, None]
        return (found.view_as(seen.tokens) * within).sum(-1)

    def _think(
        self, rows: Tensor, segment: Segment, first: int, ahead: Tensor, source: Source, config: ThoughtConfig
    ) -> "_Thought":
        """Think at places of a segment and read on in the text. `ahead` (B, C, D) are the outputs from `first` on.

        Where attention is watched they have its width as one more column.
        """
        head = self.head_weight
        outputs, scores = ahead[..., : head.shape[1]].detach(), ahead[..., -1].detach()
        if config.injection in ("entropy", "matched"):
            scores = entropies(outputs, head)
        places = choose(scores, config.share, config.injection)
        positions, lengths = places + first, torch.full_like(places, config.length)
        if config.min_length is not None:
            chosen = outputs.gather(1, places.unsqueeze(-1).expand(-1, -1, outputs.shape[2]))
            lengths = lengths_for(entropies(chosen, head), config.min_length, config.length, len(head))
        stage = Stage.of_segment(segment, self.model.config.segment_len)
        everyone = positions.repeat_interleave(config.parallel, dim=1)  # (B, M)
        tokens = source(self, stage, everyone, config.length)
        coming, exist = coming_text(rows, everyone, config.lookahead)
        each = lengths.repeat_interleave(config.parallel, dim=1)
        chain = assemble(tokens, each, coming)
        outputs = self.read(Thoughts(stage, everyone), self.embed(chain))
        groups = (positions.shape[1], config.parallel)
        return _Thought(
            positions,
            tokens.unflatten(1, groups),
            lengths,
            outputs[:, :, : config.length].unflatten(1, groups),
            talking(outputs, each, config.lookahead).unflatten(1, groups),
            coming.unflatten(1, groups)[:, :, 0],
            exist.unflatten(1, groups)[:, :, 0],
        )

    def _mixed(self, segments: Sequence[Segment], base: Tensor, nll: Tensor, thought: "_Thought") -> Observed:
        before = _at_places(base, thought.positions, thought.talk.shape[3]).unsqueeze(2).expand_as(thought.talk)
        weight = self.mixing(before, thought.talk)
        return Observed(
            segments=segments,
            base=base,
            base_nll=nll,
            positions=thought.positions,
            tokens=thought.tokens,
            lengths=thought.lengths,
            inner=thought.inner,
            weight=weight,
            mixed=mix(before, thought.talk, weight),
            targets=thought.coming,
            exist=thought.exist,
        )


@dataclass(frozen=True)
class _Thought:
    """Thoughts of one segment; fields as in `Observed`."""

    positions: Tensor
    tokens: Tensor
    lengths: Tensor
    inner: Tensor
    talk: Tensor  # (B, P, G, A, D), outputs behind the thoughts
    coming: Tensor  # (B, P, A)
    exist: Tensor  # (B, P, A)

    @staticmethod
    def together(parts: Sequence["_Thought"]) -> "_Thought":
        """Return the thoughts of all segments."""
        names = _Thought.__dataclass_fields__
        return _Thought(*(torch.cat([getattr(part, name) for part in parts], dim=1) for name in names))


def _at_places(values: Tensor, positions: Tensor, lookahead: int) -> Tensor:
    """Return what `values` (B, T, X) has at `positions` (B, P) and the lookahead behind them, (B, P, A, X)."""
    places = positions.unsqueeze(-1) + torch.arange(lookahead, device=positions.device)
    found = rows_at(values, places.clamp_max(values.shape[1] - 1).flatten(1))
    return found.view(*places.shape, -1)
