"""The chat template: each turn is <|role|>text<|end|>, and the reply begins after <|assistant|>.

Only the template writes special tokens. Text is encoded with them switched off, so a user who types <|end|> has typed
seven characters. A last turn of the user is not ended: <|user|>question<|assistant|>answer<|end|>.
"""

from collections.abc import Iterable
from typing import Literal

from tokenizers import Tokenizer

from phases.corpus.special import ASSISTANT, END, SPECIAL_IDS, SYSTEM, USER
from phases.corpus.tokenizer import encode

Role = Literal["system", "user", "assistant"]
_ROLES: dict[Role, str] = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


def chat_ids(tokenizer: Tokenizer, turns: Iterable[tuple[Role, str]]) -> list[int]:
    """Return the token ids of a conversation of (role, text) turns, ready for the reply."""
    ids: list[int] = []
    for role, text in turns:
        ids += [SPECIAL_IDS[_ROLES[role]], *encode(tokenizer, text)]
        if role != "user":
            ids.append(SPECIAL_IDS[END])
    return [*ids, SPECIAL_IDS[ASSISTANT]]
