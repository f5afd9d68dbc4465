"""Byte-level BPE with Hugging Face `tokenizers`: every byte string has an encoding, and decoding gives it back.

Text is encoded with the special tokens switched off, so that a document that contains `<|end|>` cannot end anything.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from phases.corpus.special import SPECIAL_TOKENS


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size`, the special tokens with their fixed ids included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(data: str) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json` text."""
    tokenizer = Tokenizer.from_str(data)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of plain text, in which nothing is special."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def token_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return how many UTF-8 bytes each token stands for, (vocabulary,); 0 for special tokens."""
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for token, number in tokenizer.get_vocab().items():
        lengths[number] = 0 if number < len(SPECIAL_TOKENS) else len(token)  # a byte-level symbol is one byte
    return lengths
