"""Architectures by parameter count.

The 25M layout has exactly the documented 25,069,534 parameters; the others follow its proportions to within 2% of their
names. Variants of a size differ in halting and capacity alone, neither of which is a parameter, so they can be merged.
"""

from phases.cognate.memory import MemoryConfig
from phases.cognate.titan import TitanConfig

NOMINAL = {"nano": 1_000_000, "25m": 25_069_534, "50m": 50_000_000, "100m": 100_000_000, "1.5b": 1_500_000_000}


def _preset(d_model: int, n_layers: int, n_heads: int, hidden: int, memory_hidden: int) -> TitanConfig:
    return TitanConfig(
        vocab_size=32_000,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        hidden=hidden,
        tied=False,
        segment_len=256,
        memory=MemoryConfig(hidden=memory_hidden),
    )


PRESETS: dict[str, TitanConfig] = {
    "nano": _preset(128, 3, 4, 352, 256).model_copy(update={"vocab_size": 2048, "tied": True, "segment_len": 64}),
    "25m": _preset(216, 11, 4, 1188, 1218),
    "50m": _preset(384, 11, 6, 1344, 1536),
    "100m": _preset(512, 18, 8, 1632, 2048),
    "1.5b": _preset(2048, 26, 16, 5504, 8192),
}
