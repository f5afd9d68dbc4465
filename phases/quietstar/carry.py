"""Thoughts for a model that was made from a thinking one, e.g. with fewer bits.

What thinks, the markers and the mixing head, is taken over in full precision as it is; where and whether to think is
measured anew, since the changed model is uncertain elsewhere and its thoughts are other ones.
"""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from phases import modeldir
from phases.cognate.loading import load_model
from phases.contract import ModelRef
from phases.quietstar.loading import load_thinker, save_thinking
from phases.quietstar.measure import how_to_use
from phases.quietstar.thinker import Thinker


def carry_thinking(
    parent: str, uri: str, rows: Tensor, token_bytes: npt.NDArray[np.int64], lineage: modeldir.Lineage
) -> ModelRef:
    """Let the model in `uri` think as the one in `parent` does, judged by `rows` (R, T + 1) of validation text.

    Raises `ArtifactError` where the parent does not think and `ConfigError` where thoughts do not fit into the model.
    """
    before, loaded = load_thinker(parent).thinker, load_model(uri)
    thinker = Thinker(loaded.model, before.config, before.learning)
    thinker.mixing.load_state_dict(before.mixing.state_dict())
    thinker.markers.data.copy_(before.markers.data)
    device = loaded.model.embedding.weight.device
    thinker = thinker.eval().to(device)
    threshold, helps = how_to_use(thinker, rows.to(device), token_bytes, lineage.seed)
    tokenizer = loaded.tokenizer.to_str()
    return save_thinking(uri, thinker, tokenizer=tokenizer, lineage=lineage, entropy_threshold=threshold, helps=helps)
