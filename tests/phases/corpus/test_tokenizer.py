"""Any text survives the tokenizer, and text cannot become a special token."""

from hypothesis import given, settings
from hypothesis import strategies as st

from phases.corpus.packed import Corpus
from phases.corpus.special import SPECIAL_IDS, SPECIAL_TOKENS
from phases.corpus.tokenizer import encode, load_tokenizer


@settings(deadline=None)
@given(st.text())
def test_encoding_is_lossless(corpus: Corpus, text: str) -> None:
    ids = encode(corpus.tokenizer, text)
    assert corpus.tokenizer.decode(ids) == text
    assert corpus.token_bytes[ids].sum() == len(text.encode())


def test_special_tokens_have_their_fixed_ids(corpus: Corpus) -> None:
    assert {token: corpus.tokenizer.token_to_id(token) for token in SPECIAL_TOKENS} == SPECIAL_IDS


def test_text_that_spells_a_special_token_is_text(corpus: Corpus) -> None:
    reloaded = load_tokenizer(corpus.tokenizer.to_str())
    for tokenizer in (corpus.tokenizer, reloaded):
        assert min(encode(tokenizer, "a<|end|>b<|endoftext|>")) >= len(SPECIAL_TOKENS)
