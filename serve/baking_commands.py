"""The commands around phase 6: `forge bake`, `forge chat`, `forge optimize`. `forge.py` registers them.

Bodies only parse, show progress and print; the work is in `phases.baking`. Everything that can be wrong with what a
person gives is found before work starts, and results appear under their name only when they are whole.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from phases.errors import ConfigError

if TYPE_CHECKING:
    from phases.baking.optimise.search import Outcome

console = Console()
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
ModelDir = Annotated[str, typer.Argument(help="Model directory, or a run: its newest model.")]


def bake(
    model: ModelDir,
    out: Annotated[Path, typer.Argument(help="New model directory.")],
    tools: Annotated[
        str, typer.Option(help="Tools by name with commas between, or a JSON file of lessons for tools of your own.")
    ] = "rag_query,code_execution,web_search",
    persona: Annotated[
        Path | None, typer.Option(help="YAML: helpfulness, creativity, precision (0 to 1 in tenths), name, never.")
    ] = None,
    strength: Annotated[float, typer.Option(help="The dial s in W + s * BA: 1 is the prompt, 0.5 half of it.")] = 1.0,
    instruct_steps: Annotated[
        int, typer.Option(help="Steps that teach prompts first; 0 for a model that follows them already.")
    ] = 900,
    steps: Annotated[int, typer.Option(help="Steps of baking itself.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Bake tools and a persona into a model's weights, so that it has them without a prompt.

    The model first learns to follow system prompts, then to behave without one as it does with yours, and keeps on
    listening to others. What came of it is measured on requests that it never saw: tool calls by syntax, traits as
    rates with 95% intervals, next to the same model with the prompt.

    Example: forge bake runs/demo baked --tools rag_query,code_execution --persona persona.yaml
    Then: forge chat baked
    """
    from phases import modeldir
    from phases.baking import judge, phase
    from phases.baking.config import BakingConfig
    from phases.baking.persona import Persona, read_persona
    from phases.baking.phase import Order

    if out.exists():
        raise ConfigError.of("OUT", str(out), "exists already", "name a new folder")
    config = _baking_config(BakingConfig(), strength, instruct_steps, steps)
    config = config.model_copy(update={"tools": tools, "persona": read_persona(persona) if persona else Persona()})
    source = Path(modeldir.find_model(model)).resolve()
    work = out.absolute().with_name(f".tmp-{out.name}")
    shutil.rmtree(work, ignore_errors=True)
    order = Order(str(work), modeldir.open_ref(str(source)), config, seed)
    try:
        with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
            phase.hand_off(order)
            for name, work_on, total in (
                ("prompts", phase.instruct, instruct_steps),
                ("bake", phase.bake_model, steps),
            ):
                bar = progress.add_task(name, total=total)
                work_on(order, state=None, save=lambda state: None, on_step=partial(_advance, progress, bar))
            progress.add_task("measuring", total=None)
            evidence = judge.validate(order)
        (work / phase.MODEL / "baking.json").write_text(json.dumps(evidence.measured, indent=2) + "\n")
        (work / phase.MODEL).rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _show_baked(str(out), evidence.measured, evidence.rejected, as_json)


def _advance(progress: Progress, bar: TaskID, step: Any) -> None:
    progress.update(bar, completed=step.step)


def _baking_config(config: Any, strength: float, instruct_steps: int, steps: int) -> Any:
    """Return the defaults with what the command line names. Raises `ConfigError` for what cannot be."""
    if not 0 < strength <= 2:
        raise ConfigError.of("--strength", strength, "out of range", "choose above 0 and at most 2")
    if instruct_steps < 0 or steps < 1:
        raise ConfigError.of("--steps", steps, "nothing to do", "bake for at least one step")
    taught = config.instruction.training.model_copy(update={"steps": instruct_steps})
    baked = config.prompt_baking.training.model_copy(update={"steps": steps})
    return config.model_copy(
        update={
            "instruction": config.instruction.model_copy(update={"training": taught}),
            "prompt_baking": config.prompt_baking.model_copy(update={"training": baked, "strength": strength}),
        }
    )


def _show_baked(out: str, measured: dict[str, Any], rejected: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"model": out, "measured": measured, "rejected": rejected}, indent=2))
        return
    table = Table(title="on requests that baking never saw")
    for column in ("", "baked", "prompted", "95% interval"):
        table.add_column(column)
    for kind, rate in measured["tools"]["baked"].items():
        _row(table, f"tools, {kind}", rate, measured["tools"]["prompted"].get(kind))
    for trait, rate in measured["persona"]["baked"].items():
        if isinstance(rate, dict):
            _row(table, trait, rate, measured["persona"]["prompted"][trait])
    for name in ("constraints", "identity", "obeys_contradiction"):
        _row(table, name.replace("_", " "), measured[name], None)
    console.print(table)
    kl = measured["divergence"]
    console.print(f"from the prompted model: {kl['before']:.4f} nats before, {kl['after']:.4f} after")
    console.print(f"under other prompts: {kl['other_prompts']:.4f} nats")
    for what, why in rejected.items():
        console.print(f"[red]not ready[/] {what}: {why}", highlight=False, soft_wrap=True)
    console.print(f"[bold]model[/] {out}. Next: forge chat {out}", soft_wrap=True)


def _row(table: Table, name: str, baked: dict[str, Any], prompted: dict[str, Any] | None) -> None:
    interval = f"{baked['low']:.2f} .. {baked['high']:.2f}"
    table.add_row(name, f"{baked['rate']:.3f}", f"{prompted['rate']:.3f}" if prompted else "", interval)


def chat(
    model: ModelDir,
    say: Annotated[str | None, typer.Option(help="Say this, print the reply and leave.")] = None,
    notes: Annotated[Path | None, typer.Option(help="Folder of text files that rag_query searches.")] = None,
    search_url: Annotated[
        str | None, typer.Option(help="Search engine of web_search: https://host/search?q={query}&n={k}")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt; a baked model needs none.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy, which tool calls want.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Talk to a model, and have its tool calls carried out.

    Calls run for real: code in a sandboxed process without files or network, searches of your notes in a local index,
    web searches at the engine you name. Without --notes and --search-url, small collections that come with the command
    stand in. An empty line or Ctrl-D leaves.

    Example: forge chat baked --say "compute 12 * 31" --json
    """
    from phases.baking.examples import check_prompt
    from phases.baking.prompt_baking import check_finite
    from phases.baking.talk import Talk, tools_for
    from phases.cognate.loading import load_model
    from phases.modeldir import find_model

    given = {field: text for field, text in (("--say", say), ("--system", system)) if text is not None}
    for field, text in given.items():
        if not text.strip():
            raise ConfigError.of(field, text, "is empty", "say something, or leave it out")
    loaded = load_model(find_model(model))
    check_finite(loaded.model)
    for field, text in given.items():
        check_prompt(text, loaded.tokenizer, loaded.model, field)
    with TemporaryDirectory() as folder, tools_for(Path(folder), notes, search_url) as box:
        talk = Talk(loaded.model, loaded.tokenizer, box, system, temperature)
        for said in [say] if say is not None else _lines():
            turn = talk.say(said)
            if as_json:
                typer.echo(json.dumps(turn.to_json()))
                continue
            console.print(turn.text, markup=False, highlight=False, soft_wrap=True)
            for call, result in turn.calls:
                console.print(f"  {call}\n  -> {result}", style="cyan", markup=False, highlight=False, soft_wrap=True)


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line.strip():
            return
        yield line


def optimize(
    model: Annotated[str, typer.Argument(help="ONNX file, torch program (.pt2), or a model directory or run of ours.")],
    out: Annotated[Path, typer.Argument(help="New folder for the model, its settings and the report.")],
    target: Annotated[str, typer.Option(help="latency, size or memory.")] = "latency",
    max_loss: Annotated[float, typer.Option(help="Most that the smallest cosine of an output may lack to 1.")] = 0.01,
    inputs: Annotated[
        Path | None, typer.Option(help=".npz of real inputs, rows first: even ones calibrate, odd ones judge.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Size of a symbolic axis: batch=1. May be repeated.", metavar="AXIS=N")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Of each interleaved timing.")] = 15,
    as_json: Json = False,
) -> None:
    """Make a model faster or smaller for this machine, and keep only what a measurement has shown.

    A model of ours becomes one ONNX file first, with its ponder loop in the graph, and is timed on reading 32 tokens
    (--size T=64 for 64) beside torch; the chosen file reads on from piece to piece as the model does.
    Tries what the runtime makes of the graph (each of its fusions left out once), merged products, int8 with and
    without outlier channels apart, and 8 and 4 bit weights. All are timed in turns by CPU time on one thread, against
    the fastest full-precision setting there is. The table shows everything that was tried; * marks the Pareto front.

    Example: forge optimize model.onnx fast --target latency --size sequence=128
    """
    from phases.baking.optimise.package import write_package
    from phases.baking.optimise.search import Search, optimise
    from phases.baking.optimise.sources import open_source

    if target not in ("latency", "size", "memory"):
        raise ConfigError.of("--target", target, "not known", "choose latency, size or memory")
    if not 0 < max_loss < 1:
        raise ConfigError.of("--max-loss", max_loss, "out of range", "choose between 0 and 1")
    if out.exists():
        raise ConfigError.of("OUT", str(out), "exists already", "name a new folder")
    with TemporaryDirectory() as folder, _spinner(as_json) as show:
        source = open_source(model, Path(folder), inputs=inputs, sizes=_sizes(size or []))
        search = Search(target, max_loss, rounds, eager=source.eager, on_step=show)  # type: ignore[arg-type]
        outcome = optimise(source.file, Path(folder), source.inputs, search)
        write_package(out, outcome, search, source.tokenizer, source.inputs)
        written = json.loads((out / "report.json").read_text())
    if as_json:
        typer.echo(json.dumps(written, indent=2))
        return
    _show_candidates(f"{model}, one thread", outcome, written["front"])
    harmful = written["ablation"][outcome.chosen.name]["harmful"]
    console.print(f"fusions that slow it down here: {', '.join(harmful) or 'none'}", highlight=False)
    console.print(f"[bold]chosen[/] {outcome.chosen.name}, in {out}. Next: forge audit {out}", soft_wrap=True)


def _show_candidates(title: str, outcome: "Outcome", front: Sequence[str]) -> None:
    """Print what was tried as a table for 80 columns, and below it why a candidate was dropped."""
    from phases.baking.optimise.package import shown

    table = Table(title=title)
    for column in ("", "CPU ms", "x of fp32", "MB", "peak MB", "cosine"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for candidate in outcome.candidates:
        name, *rest = shown(candidate)
        style = "dim" if candidate.dropped else ""
        table.add_row(f"{name} *" if name in front else name, *rest, style=style)
    console.print(table)
    dropped = {candidate.name: candidate.dropped for candidate in outcome.candidates if candidate.dropped}
    for name, why in (dropped | outcome.failed).items():
        console.print(f"{name}: {why}", markup=False, highlight=False, soft_wrap=True)


def _sizes(given: Sequence[str]) -> dict[str, int]:
    found = dict[str, int]()
    for text in given:
        name, _, value = text.partition("=")
        if not name or not value.isdigit() or int(value) < 1:
            raise ConfigError.of("--size", text, "not of the form AXIS=N", "write e.g. --size batch=1")
        found[name] = int(value)
    return found


@contextmanager
def _spinner(silent: bool) -> "Iterator[Any]":
    """Yield what shows the step under way."""
    with Progress(console=Console(stderr=True), transient=True, disable=silent) as progress:
        bar = progress.add_task("opening", total=None)
        yield lambda text: progress.update(bar, description=text)
