"""A quantised model learns from the full-precision one that it was made of.

Both read the same rows, segment by segment, each with a memory of its own, and at every ponder step the student's
predictions follow the teacher's at that step. Only the student's weights are parameters of this module, so the training
loop and its checkpoints see nothing of the teacher.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from phases.bitnet.losses import Predictions, distillation_loss
from phases.cognate.titan import Segment, TinyTitan


class Distillation(nn.Module):
    """What `phases.training.loop.train` trains: `loss(rows)` of the student under its teacher."""

    def __init__(self, student: TinyTitan, teacher: TinyTitan, share: float) -> None:
        """Let `share` of the loss be the teacher's and the rest cross-entropy."""
        super().__init__()
        self.student, self.share = student, share
        self._teacher = (teacher.eval(),)  # in a tuple, which nn.Module does not search

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Return what Muon may move: those of the student."""
        return self.student.hidden_matrices()

    def loss(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of `rows` (B, T + 1) and the student's own metrics, with the divergence from its teacher."""
        with torch.no_grad():
            lessons = [_predictions(self._teacher[0], segment) for segment in self._teacher[0].segments(rows)]
        segments, divergence = list[Segment](), torch.zeros((), device=rows.device)
        for segment, lesson in zip(self.student.segments(rows), lessons, strict=True):
            weight = segment.losses.shape[-1] / (rows.shape[1] - 1)
            found = weight * distillation_loss(_predictions(self.student, segment), lesson)
            segments.append(replace(segment, loss=self.share * found + (1 - self.share) * segment.loss))
            divergence = divergence + found.detach()
        total, metrics = self.student.loss_of(segments)
        return total, metrics | {"divergence": divergence}


def _predictions(model: TinyTitan, segment: Segment) -> Predictions:
    """Return the logits of all ponder steps of a segment, unmultiplied."""
    return Predictions(model.norm(segment.ran.hiddens).flatten(0, 2), model.head_weight)
