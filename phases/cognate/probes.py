"""The measurements behind the claims of phase 1 and of the corpus. Each needs the files of a run and nothing else.

Text is measured on the first tokens of a held-out split, cut into parallel streams that carry their state from end to
end, and counted in bits per byte of the original text, so that vocabularies can be compared.
"""

import math

import numpy as np
import torch

from phases import modeldir
from phases.cognate.generate import greedy_matches
from phases.cognate.loading import LoadedModel, load_model
from phases.cognate.titan import Evaluation
from phases.corpus import baselines
from phases.corpus.packed import Corpus
from phases.corpus.tasks import task_instances
from phases.corpus.tokenizer import encode
from phases.errors import ArtifactError
from phases.probes import Measurement, RunFiles, probe

BASELINE_TRAIN_TOKENS = 1_000_000


@probe("cognate/parameters")
def parameters(files: RunFiles, model: str) -> Measurement:
    """Count the parameters in the weight file."""
    return Measurement(sum(tensor.numel() for tensor in modeldir.load_tensors(files.path(model)).values()))


@probe("cognate/bits_per_byte")
def bits_per_byte(files: RunFiles, model: str, split: str, tokens: int, streams: int) -> Measurement:
    """Return total bits over total bytes; the samples are each stream's."""
    rows, evaluation = _evaluate_text(files, model, split, tokens, streams)
    n_bytes = _corpus(files).token_bytes[rows[:, 1:]].sum(1)
    bits = evaluation.nll.double().sum(1).numpy() / math.log(2)
    return Measurement(float(bits.sum() / n_bytes.sum()), (bits / n_bytes).tolist())


@probe("cognate/ponder_steps")
def ponder_steps(files: RunFiles, model: str, split: str, tokens: int, streams: int) -> Measurement:
    """Return the mean number of ponder steps per token."""
    _, evaluation = _evaluate_text(files, model, split, tokens, streams)
    return Measurement(float(evaluation.steps.double().mean()), evaluation.steps.double().mean(1).tolist())


@probe("cognate/memory_hit_rate")
def memory_hit_rate(files: RunFiles, model: str, split: str, tokens: int, streams: int) -> Measurement:
    """Return the mean share of attention that reads give to memory rather than to the null slot."""
    _, evaluation = _evaluate_text(files, model, split, tokens, streams)
    return Measurement(float(evaluation.hits.double().mean()), evaluation.hits.double().mean(1).tolist())


@probe("cognate/exact_match")
def exact_match(files: RunFiles, model: str, task: str, count: int, seed: int) -> Measurement:
    """Return the share of held-out instances answered exactly, greedily; the samples are 0 or 1 per instance."""
    key = ("exact_match", model, task, count, seed)
    if key not in files.cache:
        loaded, corpus = _model(files, model), _corpus(files)
        instances = task_instances(task, "test", count, seed)
        prompts = [corpus.prompt_ids(instance.prompt) for instance in instances]
        answers = [encode(corpus.tokenizer, instance.answer) for instance in instances]
        right = [int(match) for match in greedy_matches(loaded.model, prompts, answers)]
        files.cache[key] = Measurement(sum(right) / count, right)
    measurement: Measurement = files.cache[key]
    return measurement


@probe("corpus/unigram_bits_per_byte")
def unigram(files: RunFiles, tokens: int) -> Measurement:
    """Return what byte frequencies make of the held-out text."""
    return Measurement(baselines.unigram_bits_per_byte(_train_text(files), _test_text(files, tokens)))


@probe("corpus/five_gram_bits_per_byte")
def five_gram(files: RunFiles, tokens: int) -> Measurement:
    """Return what a 5-gram byte model makes of the held-out text."""
    key = ("five_gram", tokens)
    if key not in files.cache:
        files.cache[key] = baselines.ngram_bits_per_byte(_train_text(files), _test_text(files, tokens))
    return Measurement(files.cache[key])


@probe("corpus/xz_bits_per_byte")
def xz(files: RunFiles, tokens: int) -> Measurement:
    """Return what `xz -9e` makes of the held-out text alone."""
    return Measurement(baselines.xz_bits_per_byte(_test_text(files, tokens)))


def _evaluate_text(
    files: RunFiles, model: str, split: str, tokens: int, streams: int
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], Evaluation]:
    key = ("text", model, split, tokens, streams)
    if key not in files.cache:
        held_out = _corpus(files).tokens(split)[:tokens]
        length = len(held_out) // streams
        if length < 2:
            raise ArtifactError(f"{split} split has {len(held_out)} tokens, too few for {streams} streams")
        rows = held_out[: length * streams].reshape(streams, length).astype(np.int64)
        loaded = _model(files, model)
        device = loaded.model.embedding.weight.device
        with torch.inference_mode():
            evaluation = loaded.model.evaluate(torch.from_numpy(rows).to(device))
        cpu = Evaluation(evaluation.nll.cpu(), evaluation.steps.cpu(), evaluation.hits.cpu(), evaluation.state)
        files.cache[key] = rows, cpu
    rows, evaluation = files.cache[key]
    return rows, evaluation


def _corpus(files: RunFiles) -> Corpus:
    if "corpus" not in files.cache:
        corpus = Corpus.of_run(files.uri)
        corpus.verify()
        files.cache["corpus"] = corpus
    opened: Corpus = files.cache["corpus"]
    return opened


def _model(files: RunFiles, model: str) -> LoadedModel:
    if ("model", model) not in files.cache:
        files.cache["model", model] = load_model(files.path(model))
    loaded: LoadedModel = files.cache["model", model]
    return loaded


def _train_text(files: RunFiles) -> bytes:
    return _corpus(files).text("train", BASELINE_TRAIN_TOKENS)


def _test_text(files: RunFiles, tokens: int) -> bytes:
    return _corpus(files).text("test", tokens)
