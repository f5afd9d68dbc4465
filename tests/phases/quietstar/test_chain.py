"""Chains of thoughts of different lengths, spelled out."""

import torch

from phases.quietstar.chain import END_ID, PAD_ID, START_ID, assemble, coming_text, talking


def test_chains_of_different_lengths() -> None:
    thoughts = torch.tensor([[[20, 21, 22], [30, 31, 32]]])
    coming = torch.tensor([[[40, 41], [50, 51]]])
    found = assemble(thoughts, torch.tensor([[3, 1]]), coming)
    assert found.tolist() == [[[START_ID, 20, 21, 22, END_ID, 40], [START_ID, 30, END_ID, 50, PAD_ID, PAD_ID]]]


def test_text_is_predicted_from_the_end_marker_on() -> None:
    outputs = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 2, 6, 1)
    assert talking(outputs, torch.tensor([[3, 1]]), 2).squeeze(-1).tolist() == [[[4, 5], [2, 3]]]


def test_the_coming_text_ends_with_the_row_and_is_no_padding() -> None:
    rows = torch.tensor([[10, 11, 12, 13], [20, 21, PAD_ID, PAD_ID]])
    tokens, exist = coming_text(rows, torch.tensor([[0, 2], [0, 1]]), 2)
    assert exist.tolist() == [[[True, True], [True, False]], [[True, False], [False, False]]]
    assert tokens[exist].tolist() == [11, 12, 13, 21]
