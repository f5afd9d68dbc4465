"""Which tokenizer a merged model gets, and whether the models may share one.

Rows of an embedding mean the same only if each id stands for the same token in every model, which is what is checked.
Byte-level tokenizers need no more than a copy then; vocabularies that contradict each other are refused, never cut.
"""

from collections.abc import Iterator
from pathlib import Path

from phases import storage
from phases.errors import ConfigError
from phases.evomerge.checkpoint import Checkpoint, open_checkpoint
from phases.evomerge.errors import MergeError
from phases.evomerge.recipe import Recipe

TOKENIZER = "tokenizer.json"
FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def tokenizer_files(recipe: Recipe, checkpoints: dict[str, Checkpoint], donor: Checkpoint) -> tuple[Path, ...]:
    """Return the tokenizer's files of the model that `tokenizer_source` means, `donor` being the base.

    Raises `MergeError` where two vocabularies contradict each other, or differ at all and are to be united.
    """
    source = recipe.tokenizer_source
    if source not in (None, "base", "union"):
        donor = checkpoints.get(source) or open_checkpoint(source)
    if source == "base" and recipe.base_model is None:
        raise ConfigError.of(
            f"{recipe.file}: tokenizer_source", source, "there is no base_model", "name a model instead"
        )
    folders = list(dict.fromkeys([donor.folder, *(checkpoint.folder for checkpoint in checkpoints.values())]))
    having = [folder for folder in folders if (folder / TOKENIZER).is_file()]
    _check_agreement(having, union=source == "union")
    found = tuple(donor.folder / name for name in FILES if (donor.folder / name).is_file())
    if source is not None and not found:
        raise ConfigError.of(
            f"{recipe.file}: tokenizer_source", source, f"no tokenizer in {donor.folder}", "name another"
        )
    return found


def _check_agreement(folders: list[Path], *, union: bool) -> None:
    """Compare the vocabulary of the first folder with each other one; equal files are not parsed."""
    hashes = {folder: storage.sha256(str(folder / TOKENIZER)) for folder in folders}
    different = [folder for folder in folders[1:] if hashes[folder] != hashes[folders[0]]]
    ours = _vocabulary(folders[0]) if different else {}
    for folder in different:
        theirs = _vocabulary(folder)
        if (conflict := next(_conflicts(ours, theirs), None)) is not None:
            raise MergeError(
                f"{folder / TOKENIZER}: {conflict}, unlike in {folders[0]}; merge models with one vocabulary"
            )
        if union and theirs.keys() != ours.keys():
            raise MergeError(
                f"{folder / TOKENIZER}: the vocabulary differs from that of {folders[0]}, and tokenizer_source 'union' "
                "does not extend vocabularies; name the model whose tokenizer to take"
            )


def _vocabulary(folder: Path) -> dict[str, int]:
    """Return token -> id of a `tokenizer.json`, added tokens included."""
    content = storage.read_json(str(folder / TOKENIZER))
    model = content.get("model", {}).get("vocab", {})
    pairs = model.items() if isinstance(model, dict) else ((entry[0], n) for n, entry in enumerate(model))
    return dict(pairs) | {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}


def _conflicts(ours: dict[str, int], theirs: dict[str, int]) -> Iterator[str]:
    tokens = {number: token for token, number in ours.items()}
    for token, number in theirs.items():
        if token in ours and ours[token] != number:
            yield f"token {token!r} has id {number}, not {ours[token]}"
        elif tokens.get(number, token) != token:
            yield f"id {number} is {token!r}, not {tokens[number]!r}"
