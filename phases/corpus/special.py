"""The special tokens, reserved from the start so that no later phase resizes the vocabulary. Their ids never change."""

PAD, END_OF_TEXT = "<|pad|>", "<|endoftext|>"
START_THOUGHT, END_THOUGHT = "<|startthought|>", "<|endthought|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
TOOL_CALL, TOOL_RESULT = "<|tool_call|>", "<|tool_result|>"

SPECIAL_TOKENS: tuple[str, ...] = (
    PAD,
    END_OF_TEXT,
    START_THOUGHT,
    END_THOUGHT,
    SYSTEM,
    USER,
    ASSISTANT,
    TOOL_CALL,
    TOOL_RESULT,
    END,
    *(f"<|reserved{number}|>" for number in range(6)),
)
SPECIAL_IDS: dict[str, int] = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
