"""The chat template: each turn is <|role|>text<|end|>, and the reply begins after <|assistant|>.

Only the template writes special tokens. Text is encoded with them switched off, so a user who types <|end|> has typed
seven characters.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

from phases.corpus.special import ASSISTANT, END, SPECIAL_IDS, SYSTEM, USER
from phases.corpus.tokenizer import encode
from serve.schema import Message

_ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a conversation, ready for the reply.

    A last turn of the user is not ended, as in training: <|user|>question<|assistant|>answer<|end|>.
    """
    ids: list[int] = []
    for message in messages:
        ids += [SPECIAL_IDS[_ROLES[message.role]], *encode(tokenizer, message.content)]
        if message.role != "user":
            ids.append(SPECIAL_IDS[END])
    return [*ids, SPECIAL_IDS[ASSISTANT]]
