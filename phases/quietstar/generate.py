"""Text from a model that thinks before some of its tokens, and what that costs.

A thought begins from the state behind the text so far and leaves no trace in it; only the token that was said is read
on. `auto` thinks where the model is uncertain, at the entropy that held the trained share of places, and nowhere where
thoughts did not help on validation text. Thoughts are greedy, so that a generation depends on its sampling seed alone.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from phases.cognate.generate import Generation, Sampling, read_on, stream
from phases.cognate.state import State
from phases.cognate.titan import TinyTitan
from phases.errors import ConfigError
from phases.quietstar.chain import END_ID, START_ID
from phases.quietstar.config import SamplingConfig
from phases.quietstar.loading import LoadedThinker
from phases.quietstar.mixing import mix
from phases.quietstar.sources import think
from phases.quietstar.window import Stage, Thoughts

Think = Literal["auto", "always", "never"]
GREEDY = SamplingConfig(temperature=0)


@dataclass(frozen=True)
class ThoughtRecord:
    """A thought and what it changed."""

    said: int  # tokens said before it
    text: str
    weight: float  # of the thought in the mix
    entropy: float  # nats, of the prediction without it
    before: str  # likeliest token without it
    after: str  # likeliest token with it


@dataclass
class Thoughtful:
    """A thinking reader: gives next-token logits and keeps what was thought on the way."""

    loaded: LoadedThinker
    mode: Think = "auto"
    on_thought: Callable[[ThoughtRecord], None] = lambda record: None
    thoughts: list[ThoughtRecord] = field(default_factory=list)
    thought_tokens: int = 0  # both markers included
    said: int = 0

    @property
    def cost(self) -> float:
        """Tokens thought per token said."""
        return self.thought_tokens / max(1, self.said)

    def summary(self, *, with_thoughts: bool) -> dict[str, Any]:
        """Return what thinking cost, as JSON values, and what was thought where that is asked for."""
        found: dict[str, Any] = {"mode": self.mode, "thought_tokens": self.thought_tokens, "per_token_said": self.cost}
        return found | ({"thoughts": [asdict(record) for record in self.thoughts]} if with_thoughts else {})

    def read_on(self, model: TinyTitan, ids: list[int], state: State) -> tuple[Tensor, int]:
        """Read `ids` on and return the logits (V,) of the next token, thought about where due, and ponder steps."""
        logits, steps = read_on(model, ids, state)
        entropy = float(torch.distributions.Categorical(logits=logits).entropy())
        uncertain = entropy >= self.loaded.entropy_threshold
        if self.mode == "always" or (self.mode == "auto" and self.loaded.helps and uncertain):
            logits = self._reconsidered(logits, entropy, state)
        self.said += 1
        return logits, steps

    @torch.inference_mode()
    def _reconsidered(self, logits: Tensor, entropy: float, state: State) -> Tensor:
        thinker, tokenizer = self.loaded.thinker, self.loaded.tokenizer
        device = thinker.head_weight.device
        stage, positions = Stage.of_state(state), torch.tensor([[state.position - 1]], device=device)
        tokens = think(thinker, stage, positions, thinker.config.length, GREEDY)
        marks = torch.tensor([[[START_ID], [END_ID]]], device=device)
        chain = torch.cat([marks[:, :1], tokens, marks[:, 1:]], dim=2)
        thought = thinker.read(Thoughts(stage, positions), thinker.embed(chain))[0, 0, -1]
        base = state.outputs[0, (state.position - 1) % thinker.model.config.segment_len]
        weight = thinker.mixing(base, thought)
        mixed = (mix(base, thought, weight) @ thinker.head_weight.T).cpu()
        record = ThoughtRecord(
            said=self.said,
            text=tokenizer.decode(tokens.flatten().tolist()),
            weight=float(weight),
            entropy=entropy,
            before=tokenizer.decode([int(logits.argmax())]),
            after=tokenizer.decode([int(mixed.argmax())]),
        )
        self.thoughts.append(record)
        self.thought_tokens += chain.shape[2]
        self.on_thought(record)
        return mixed


def thoughtful_stream(reader: Thoughtful, prompt: list[int], sampling: Sampling) -> Generation:
    """Generate from prompt ids, thinking as `reader` does. Raises `ConfigError` for an empty prompt."""
    loaded = reader.loaded
    return stream(loaded.thinker.model, loaded.tokenizer, prompt, sampling, reader.read_on)


def reader_for(thinker: LoadedThinker | None, mode: Think) -> Thoughtful | None:
    """Return a reader that thinks in a mode, None where nothing is ever thought.

    Raises `ConfigError` where a model that has not learned to think is to think always.
    """
    if thinker is None and mode == "always":
        raise ConfigError.of("think", mode, "this model has not learned to think", "run phase quietstar, or use auto")
    return None if thinker is None or mode == "never" else Thoughtful(thinker, mode)
