"""Configuration of a corpus, and of the mix of text and tasks that training rows are drawn from."""

import sysconfig

from pydantic import Field, field_validator, model_validator

from phases import storage
from phases.corpus.special import SPECIAL_TOKENS
from phases.errors import ConfigError
from phases.settings import Settings

STDLIB = "stdlib"


class CorpusConfig(Settings):
    """What text is read and how it becomes tokens."""

    source: str = Field(default=STDLIB, description="stdlib, a file, a folder, a URI, or hf:NAME")
    text_field: str = Field(default="text", description="field or column of jsonl, parquet, HDF5 and hf: records")
    vocab_size: int = Field(
        default=2048, ge=256 + len(SPECIAL_TOKENS), description="of the byte-level BPE, special tokens included"
    )
    tokenizer: str | None = Field(default=None, description="a tokenizer.json of a forge model; None learns one")
    max_bytes: int | None = Field(default=None, ge=1, description="stop after this many bytes of text; None reads all")
    tokenizer_bytes: int = Field(default=8 << 20, ge=1, description="bytes of train text that the BPE is learned from")

    @field_validator("source")
    @classmethod
    def _source_exists(cls, source: str) -> str:
        if source != STDLIB and not source.startswith("hf:") and not storage.exists(source):
            fix = "name a file, a folder, a URI, hf:NAME or stdlib"
            raise ConfigError.of("corpus.source", source, "there is nothing at this path", fix)
        return source

    @property
    def location(self) -> str:
        """Where the source's files are."""
        return sysconfig.get_paths()["stdlib"] if self.source == STDLIB else self.source


class MixConfig(Settings):
    """Shares of the training rows; they are divided by their sum."""

    text: float = Field(default=0, ge=0)
    arithmetic: float = Field(default=0, ge=0)
    permutation: float = Field(default=0, ge=0)
    pointer: float = Field(default=0, ge=0)
    recall: float = Field(default=0, ge=0)
    tool_call: float = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _something_is_drawn(self) -> "MixConfig":
        if not any(self.model_dump().values()):
            raise ConfigError.of("mix", self.model_dump(), "all shares are 0", "give at least one a positive share")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Return name -> share for what is drawn at all; the shares sum to 1."""
        weights = {name: float(weight) for name, weight in self.model_dump().items() if weight}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}
