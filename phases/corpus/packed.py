"""A prepared corpus, and training batches from it.

`Corpus.batch` is a pure function of its arguments: row r of step s is the same whatever was asked before. A resumed run
therefore needs the number of the step and nothing else. Text windows are visited once per epoch, in an order given by a
keyed affine permutation that takes no memory; task rows hold fresh instances.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from phases import rundir, storage
from phases.corpus.special import ASSISTANT, END, SPECIAL_IDS, SPECIAL_TOKENS, USER
from phases.corpus.tasks import draw
from phases.corpus.tokenizer import encode, load_tokenizer, token_bytes
from phases.errors import ArtifactError, ConfigError
from phases.seeds import child_seed, numpy_rng

CORPUS = "corpus.json"
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Token files of the three splits in a local folder."""

    folder: Path
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        """Open a folder that `prepare` has completed. Raises `ArtifactError` naming what is missing."""
        storage.read_json(str(folder / CORPUS))
        return cls(folder, load_tokenizer(storage.read_bytes(str(folder / "tokenizer.json")).decode()))

    @classmethod
    def of_run(cls, run: str) -> "Corpus":
        """Open the corpus of a run, copied to this machine where the run is elsewhere. Raises as `open`."""
        return cls.open(storage.local_folder(storage.join(run, rundir.CORPUS)))

    def verify(self) -> None:
        """Raise `ArtifactError` naming a file whose hash is not the one that `corpus.json` recorded."""
        for name, expected in storage.read_json(str(self.folder / CORPUS))["files"].items():
            if storage.sha256(str(self.folder / name)) != expected:
                raise ArtifactError(f"{self.folder / name}: altered since the corpus was prepared")

    @property
    def vocab_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    @cached_property
    def token_bytes(self) -> Tokens:
        """UTF-8 bytes of each token, (vocabulary,); 0 for special tokens."""
        return token_bytes(self.tokenizer)

    def tokens(self, split: str) -> npt.NDArray[np.uint16] | npt.NDArray[np.uint32]:
        """Return all token ids of a split, memory-mapped; each document ends with <|endoftext|>."""
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        return np.memmap(self.folder / f"{split}.bin", dtype, "r")

    def text(self, split: str, max_tokens: int) -> bytes:
        """Return the text of the first tokens of a split, document ends left out."""
        ids = self.tokens(split)[:max_tokens]
        return str(self.tokenizer.decode(ids[ids >= len(SPECIAL_TOKENS)].tolist())).encode()

    def batch(
        self, step: int, *, batch_size: int, seq_len: int, mix: dict[str, float], seed: int, split: str = "train"
    ) -> Tokens:
        """Return the rows of a step, (batch_size, seq_len + 1): inputs and, shifted by one, targets.

        Each row is text or one task, drawn by the shares in `mix`. Raises `ConfigError` where the split is shorter
        than a row.
        """
        rows = np.empty((batch_size, seq_len + 1), np.int64)
        for row in range(batch_size):
            rng = numpy_rng(seed, "row", step, row)
            kind = str(rng.choice(list(mix), p=list(mix.values())))
            if kind == "text":
                rows[row] = self._window(step * batch_size + row, seq_len + 1, seed, split)
            else:
                rows[row] = self._task_row(kind, rng, seq_len + 1, split)
        return rows

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return a task's prompt as the model sees it: <|user|>prompt<|assistant|>."""
        return [SPECIAL_IDS[USER], *encode(self.tokenizer, prompt), SPECIAL_IDS[ASSISTANT]]

    def _window(self, index: int, length: int, seed: int, split: str) -> Tokens:
        tokens = self.tokens(split)
        windows = len(tokens) // length
        if windows == 0:
            fix = f"use a seq_len below {len(tokens)} or more text"
            raise ConfigError.of("seq_len", length - 1, f"the {split} split has only {len(tokens)} tokens", fix)
        epoch, place = divmod(index, windows)
        key = child_seed(seed, "epoch", epoch)
        multiplier = key % windows | 1
        while math.gcd(multiplier, windows) > 1:
            multiplier += 2
        start = (place * multiplier + key // windows) % windows * length
        return tokens[start : start + length].astype(np.int64)

    def _task_row(self, task: str, rng: np.random.Generator, length: int, split: str) -> Tokens:
        ids: list[int] = []
        while len(ids) < length:
            instance = draw(task, rng, split)
            ids += [*self.prompt_ids(instance.prompt), *encode(self.tokenizer, instance.answer), SPECIAL_IDS[END]]
        return np.array(ids[:length], np.int64)
