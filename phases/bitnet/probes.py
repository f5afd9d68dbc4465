"""The measurements behind the claims of phase 4, each of a file as it is stored."""

import os
from pathlib import Path

import torch
from pydantic import ValidationError

from phases import storage
from phases.bitnet.config import HeldOutConfig
from phases.bitnet.onnx_runtime import OnnxModel
from phases.bitnet.performance import Performance
from phases.bitnet.quality import file_bits_per_byte, streams
from phases.contract import Probe
from phases.corpus.packed import Corpus
from phases.errors import ArtifactError
from phases.probes import Measurement, RunFiles, probe
from phases.quietstar.loading import load_thinker
from phases.quietstar.measure import measure_text


@probe("bitnet/bits_per_byte")
def bits_per_byte(files: RunFiles, file: str, split: str, tokens: int, parts: int) -> Measurement:
    """Return the bits per byte of held-out text under an exported file, as it runs."""
    corpus = Corpus.of_run(files.uri)
    rows = streams(corpus, split, HeldOutConfig(tokens=tokens, streams=parts))
    return Measurement(file_bits_per_byte(OnnxModel(local_file(files, file)), rows, corpus.token_bytes))


@probe("bitnet/megabytes")
def megabytes(files: RunFiles, file: str) -> Measurement:
    """Return the size of a file in 10^6 bytes."""
    return Measurement(os.path.getsize(local_file(files, file)) / 1e6)


@probe("bitnet/compression_ratio")
def compression_ratio(files: RunFiles, file: str, parameters: int) -> Measurement:
    """Return how many times smaller a file is than its parameters in fp32."""
    return Measurement(4 * parameters / os.path.getsize(local_file(files, file)))


@probe("bitnet/speedup")
def speedup(files: RunFiles, file: str) -> Measurement:
    """Return how many times as fast as fp32 an exported file decoded, computed from the samples that the run kept.

    Times are those of the machine that the run was on, so they are not measured anew; `forge profile` does that here.
    """
    try:
        turns = Performance.model_validate(storage.read_json(files.path(file))).turns
    except ValidationError as error:
        raise ArtifactError(f"{files.path(file)}: not what phase 4 measured ({error})") from error
    if turns is None:
        raise ArtifactError(f"{files.path(file)}: nothing was timed")
    return Measurement(turns.speedup)


@probe("bitnet/thinking_gain")
def thinking_gain(files: RunFiles, model: str, split: str, tokens: int, parts: int) -> Measurement:
    """Return the bits per byte of held-out text that greedy thoughts save a model directory that thinks."""
    corpus, thinker = Corpus.of_run(files.uri), load_thinker(files.path(model)).thinker
    rows = torch.from_numpy(streams(corpus, split, HeldOutConfig(tokens=tokens, streams=parts)))
    return Measurement(measure_text(thinker, rows.to(thinker.head_weight.device), corpus.token_bytes).gain)


def quality_of(file: str, split: str, held_out: HeldOutConfig) -> Probe:
    """Return the probe that measures the bits per byte of an exported file."""
    arguments = {"file": file, "split": split, "tokens": held_out.tokens, "parts": held_out.streams}
    return Probe(name="bitnet/bits_per_byte", arguments=dict(arguments))


def local_file(files: RunFiles, file: str) -> Path:
    """Return a file of the run on this machine. Raises `ArtifactError` where it is missing."""
    uri = files.path(file)
    if not storage.exists(uri):
        raise ArtifactError(f"{uri}: no such file")
    folder, _, name = uri.rpartition("/")
    return storage.local_folder(folder) / name
