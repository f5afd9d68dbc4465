"""From the messages of a request to the chat template's token ids."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from phases.corpus import chat
from serve.schema import Message


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a conversation, ready for the reply."""
    return chat.chat_ids(tokenizer, ((message.role, message.content) for message in messages))
