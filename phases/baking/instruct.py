"""Teaching a model to follow system prompts, by training on dialogues that the prompt decides.

One dialogue is one row, padded, so that no prompt reaches into another's dialogue. Many have further turns, whose
replies are as much under the prompt as the first's. Two things are there for copying, without which a reply has the
right form and the wrong value: only replies are learned, for the entropy of what users and prompts say drowns the rest;
and some dialogues ask to repeat words. Rows are a function of the step, as the training loop wants it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from phases.baking.dialogues import (
    UNPROMPTED,
    Kind,
    draw_kind,
    draw_prompt,
    draw_reply,
    draw_request,
    prefix_ids,
    reply_text,
)  # fmt: skip
from phases.baking.lessons import NUMBERS, TOPICS, Lesson
from phases.cognate.titan import TinyTitan
from phases.corpus.special import ASSISTANT, END, END_OF_TEXT, PAD, SPECIAL_IDS
from phases.corpus.tokenizer import encode, train_tokenizer
from phases.seeds import numpy_rng
from phases.training.losses import linear_cross_entropy

_TURNS = (0.4, 0.3, 0.3)  # shares of dialogues of one turn, two and three
_MULTIPLE = 8  # of a batch's length: kernels and buffers are kept for each length there is
_GROUP = 4  # steps whose dialogues are sorted by length together
_UNPROMPTED = 0.25  # of the dialogues
_EXTREMES = 0.3  # of the levels; a rate is learned sooner from prompts that show always or never
# Of the requests but echoes. Questions are most, for a rate takes many replies to learn, and a call few.
_KINDS: dict[Kind, float] = {"single": 0.12, "parallel": 0.16, "question": 0.6, "subject": 0.07, "identity": 0.05}
_ECHOES = 0.1  # of the turns, with or without a prompt
_LONG_ECHO = 16  # words, of those that come before all dialogues
_WORDS = (*TOPICS, *NUMBERS)
Batches = Callable[[int], Tensor]


def dialogue_ids(
    rng: np.random.Generator, tokenizer: Tokenizer, lessons: Mapping[str, Lesson], turns: int
) -> list[int]:
    """Return a whole dialogue under a prompt drawn for it, or under none."""
    prompt = None if rng.random() < _UNPROMPTED else draw_prompt(rng, tuple(lessons), _EXTREMES)
    ids = list[int]()
    for turn in range(turns):
        if rng.random() < _ECHOES:
            asked, reply = _echo(rng, tokenizer, 8)
        else:
            request = draw_request(rng, lessons, "all", draw_kind(rng, _KINDS))
            asked, reply = request.text, draw_reply(rng, request, prompt or UNPROMPTED, tokenizer)
        ids += [*prefix_ids(tokenizer, None if turn else prompt, [("user", asked)]), *reply]
    return [*ids, SPECIAL_IDS[END_OF_TEXT]]


def _echo(rng: np.random.Generator, tokenizer: Tokenizer, most: int) -> tuple[str, list[int]]:
    """Return a request to say two or more words, and the reply."""
    words = " ".join(rng.choice(_WORDS, int(rng.integers(2, most + 1))))
    return f"say {words}", [*encode(tokenizer, words), SPECIAL_IDS[END]]


def _echo_ids(rng: np.random.Generator, tokenizer: Tokenizer) -> list[int]:
    """Return a dialogue that is nothing but copying."""
    asked, reply = _echo(rng, tokenizer, _LONG_ECHO)
    return [*prefix_ids(tokenizer, None, [("user", asked)]), *reply, SPECIAL_IDS[END_OF_TEXT]]


def dialogue_batches(
    tokenizer: Tokenizer,
    lessons: Mapping[str, Lesson],
    *,
    batch_size: int,
    seed: int,
    copying_steps: int = 0,
    text: Batches | None = None,
    text_share: float = 0.0,
) -> Batches:
    """Return step -> rows (B, T + 1) of dialogues; `text` gives the rows of a share of the steps.

    The first `copying_steps` have nothing but requests to repeat words: what copies is learned there in few steps, and
    in dialogues only after many.
    Some steps share their dialogues by length, so that little of a batch is padding: nearly twice as fast.
    """

    @lru_cache(maxsize=1)
    def sorted_rows(group: int) -> tuple[list[list[int]], list[int]]:
        rng = numpy_rng(seed, "dialogues", group)
        turns = 1 + rng.choice(len(_TURNS), _GROUP * batch_size, p=_TURNS)
        rows = sorted((dialogue_ids(rng, tokenizer, lessons, int(number)) for number in turns), key=len)
        return rows, [int(place) for place in rng.permutation(_GROUP)]

    def batch(step: int) -> Tensor:
        if text is not None and numpy_rng(seed, "text", step).random() < text_share:
            return text(step)
        if step < copying_steps:
            rng = numpy_rng(seed, "copying", step)
            return padded([_echo_ids(rng, tokenizer) for _ in range(batch_size)], _MULTIPLE)
        rows, order = sorted_rows(step // _GROUP)
        place = order[step % _GROUP] * batch_size
        return padded(rows[place : place + batch_size], _MULTIPLE)

    return batch


class Pupil(nn.Module):
    """A TinyTitan that learns replies; rows without any, such as plain text, are learned whole."""

    def __init__(self, model: TinyTitan) -> None:
        super().__init__()
        self.model = model

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of `rows` (B, T + 1): of all ponder steps, as in pretraining, but on replies alone."""
        weights = reply_mask(rows)[:, 1:].float()  # (B, T), of the targets
        segments = list(self.model.segments(rows, supervised=False))
        outputs = torch.cat([self.model.norm(segment.ran.hiddens) for segment in segments], dim=2)  # (S, B, T, D)
        n_steps = outputs.shape[0]
        every = (weights / (n_steps * weights.sum())).expand(n_steps, -1, -1).flatten()
        targets = rows[:, 1:].expand(n_steps, -1, -1).flatten()
        learned = every.nonzero().squeeze(1)  # a fifth of the tokens or so
        loss, _ = linear_cross_entropy(
            outputs.flatten(0, 2)[learned], self.model.head_weight, targets[learned], every[learned]
        )
        total, metrics = self.model.with_halting(loss, segments)
        return total, {"cross_entropy": loss.detach(), "halting_loss": metrics["halting_loss"]}


def reply_mask(rows: Tensor) -> Tensor:
    """Say which tokens of `rows` (B, T) belong to replies, their ends included; all do in a row without replies."""
    index = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    begun, ended = (torch.where(rows == SPECIAL_IDS[mark], index, -1).cummax(1).values for mark in (ASSISTANT, END))
    before = torch.nn.functional.pad(ended, (1, 0), value=-1)[:, :-1]  # the last end before each token
    inside = (begun > before) & (rows != SPECIAL_IDS[ASSISTANT])
    return inside | (begun[:, -1:] < 0)


def padded(rows: list[list[int]], multiple: int = 1) -> Tensor:
    """Return rows (B, T), T a multiple, the shorter ones padded on the right, which nothing before it can see."""
    filled = torch.full((len(rows), -(-max(map(len, rows)) // multiple) * multiple), SPECIAL_IDS[PAD])
    for place, row in enumerate(rows):
        filled[place, : len(row)] = torch.tensor(row)
    return filled


def dialogue_tokenizer(lessons: Mapping[str, Lesson], vocab_size: int, seed: int = 0) -> Tokenizer:
    """Learn a vocabulary from dialogues alone, for models that read nothing else."""
    rng = numpy_rng(seed, "dialogues", "tokenizer")
    texts = list[str]()
    for _ in range(3000):
        prompt, request = draw_prompt(rng, tuple(lessons)), draw_request(rng, lessons, "all")
        texts += [prompt.text, request.text, *(call.to_json() for call in request.calls)]
        texts.append(reply_text(rng, request, prompt))
    return train_tokenizer(texts, vocab_size)
