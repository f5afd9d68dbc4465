"""The command `forge generate`: text from a model, and what it thought on the way. `forge.py` registers it.

Text goes to stdout as it is certain, thoughts to stderr; with `--json` one object has both.
"""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:  # the module needs torch, which would make `forge --help` slow
    from phases.quietstar.generate import ThoughtRecord


def generate(
    model: Annotated[str, typer.Argument(help="Model directory, or a run: its newest model.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads standard input.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample within this share of probability.")] = 0.95,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text. May be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    think: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Before tokens: auto is where the model is unsure and thoughts have helped."),
    ] = "auto",
    show_thoughts: Annotated[
        bool, typer.Option("--show-thoughts", help="Show what was thought, on stderr or in the JSON.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Continue a text with a model.

    Example: forge generate runs/demo --prompt "def main(" --max-tokens 64 --think always --show-thoughts
    """
    from phases import modeldir
    from phases.cognate.generate import Sampling, complete, read_on
    from phases.cognate.loading import load_model
    from phases.quietstar.generate import reader_for
    from phases.quietstar.loading import thinker_of

    directory = modeldir.find_model(model)
    loaded = load_model(directory)
    reader = reader_for(thinker_of(loaded, directory), think)
    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = Sampling(
        max_new_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=tuple(stop or ()),
        seed=seed,
    )
    show: Callable[[str], None] = (lambda piece: None) if as_json else (lambda piece: typer.echo(piece, nl=False))
    if reader is not None and show_thoughts and not as_json:
        reader.on_thought = _show_thought
    read = reader.read_on if reader else read_on
    completion = complete(loaded.model, loaded.tokenizer, text, sampling, on_text=show, reader=read)
    thinking = reader.summary(with_thoughts=show_thoughts) if reader else None
    if as_json:
        found = {"model": loaded.ref.model_dump(), "prompt": text} | completion.model_dump() | {"thinking": thinking}
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo()
    if reader is not None and show_thoughts:
        typer.echo(f"{reader.cost:.2f} tokens thought per token said", err=True)


def _show_thought(record: "ThoughtRecord") -> None:
    changed = "" if record.before == record.after else f", {record.before!r} becomes {record.after!r}"
    typer.echo(f"\n  <{record.text!r} weighs {record.weight:.2f}{changed}>", err=True)
