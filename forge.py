"""The command line of Agent Forge, and the script for `ray submit cluster.yaml forge.py run ...`.

Commands print for people, or one JSON object with `--json`. Errors that a person can fix are one line on stderr and no
traceback. The exit code is 0 only on success. Heavy imports happen inside the commands, so that `--help` is quick.
"""

import contextlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from phases.errors import ConfigError, ForgeError
from serve import baking_commands, generate_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A model foundry on Ray: a text corpus in, a small, specialised, compressed, served language model out.",
)
console = Console()

Run = Annotated[str, typer.Argument(help="Run directory: a path or any fsspec URI.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Preset = Annotated[str, typer.Option(help="A preset from configs/: smoke, nano, cognate-25m, ...")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file on top of the preset.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field: a.b=c. May be repeated.", metavar="A.B=C")
]
Corpus = Annotated[
    str | None,
    typer.Option(help="`stdlib` (default), a file, a folder, a URI or hf:NAME; short for --set corpus.source=..."),
]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; default: RAY_ADDRESS, or this machine.")]


@app.command()
def run(
    preset: Preset = "nano",
    config: ConfigFile = None,
    set_: Overrides = None,
    phases: Annotated[str | None, typer.Option(help="Comma-separated phases to run; default: all.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Default: runs/<timestamp>-<preset>.")] = None,
    corpus: Corpus = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline from a corpus to a model.

    Example: forge run --preset nano --corpus ./my-texts --set cognate.training.steps=500
    """
    from coordinators.config import load_config
    from coordinators.driver import start_run

    overrides = list(set_ or [])
    overrides += [f"corpus.source={corpus}"] if corpus else []
    overrides += [f"phases=[{phases}]"] if phases else []
    overrides += [f"ray.address={address}"] if address else []
    where = run_dir or f"runs/{datetime.now(UTC):%Y%m%d-%H%M%S}-{preset}"
    result = start_run(load_config(preset, config, overrides), where, plain=as_json)
    _show_result(where, result, as_json)


@app.command()
def resume(run: Run, address: Address = None, as_json: Json = False) -> None:
    """Continue a run that stopped, from its newest good checkpoint; a finished run is left as it is."""
    from coordinators.driver import resume_run

    _show_result(run, resume_run(run, address=address, plain=as_json), as_json)


@app.command()
def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until the run ends, or Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show how far a run is and how it fares, from its files alone."""
    from coordinators.status import run_status
    from coordinators.statusview import render, watch_on
    from coordinators.statusview import watch as keep_showing

    try:
        if not watch:
            state = run_status(run)
            _print_json(state) if as_json else console.print(render(state))
        elif as_json:
            keep_showing(run, lambda state: typer.echo(json.dumps(state, default=str)))
        else:
            watch_on(run, console)
    except KeyboardInterrupt:
        return


@app.command()
def report(run: Run) -> None:
    """Write RUN/report.html, one self-contained page, and print where it is."""
    from coordinators.report import write_report

    typer.echo(write_report(run))


@app.command()
def verify(run: Run, as_json: Json = False) -> None:
    """Measure every claim of a run again, from its files alone. Exit code 1 where anything differs."""
    from coordinators.verify import verify as findings_of

    findings = []
    for finding in findings_of(run):
        findings.append(finding)
        if not as_json:
            mark = "[green]ok[/]  " if finding.ok else "[red]FAIL[/]"
            numbers = "" if finding.claimed is None else f"  claimed {finding.claimed:.6g}"
            numbers += (
                "" if finding.measured is None else f", measured {finding.measured:.6g} (+-{finding.tolerance:g})"
            )
            console.print(f"{mark} {finding.subject}{numbers}", highlight=False, soft_wrap=True)
            if finding.problem:
                console.print(f"     {finding.problem}", style="red", highlight=False, soft_wrap=True)
    bad = [finding.subject for finding in findings if not finding.ok]
    if as_json:
        _print_json({"run": run, "ok": not bad, "findings": [f.model_dump() for f in findings]})
    else:
        console.print(f"{len(findings) - len(bad)} of {len(findings)} checks hold", style="red" if bad else "green")
    if bad:
        raise typer.Exit(1)


@app.command()
def phase(
    name: Annotated[str, typer.Argument(help="Name of the phase, e.g. cognate.")],
    model: Annotated[str | None, typer.Option(help="Model directory that the phase starts from.")] = None,
    out: Annotated[str | None, typer.Option(help="Run directory for the result; default as in `forge run`.")] = None,
    preset: Preset = "nano",
    config: ConfigFile = None,
    set_: Overrides = None,
    corpus: Corpus = None,
    as_json: Json = False,
) -> None:
    """Run one phase alone. The first one, cognate, starts from a corpus and takes no --model.

    Example: forge phase quietstar --model runs/demo --out runs/thinking
    """
    from coordinators.config import MAKE_THEIR_MODELS
    from phases import modeldir

    start = []
    if model is not None:
        source = model if name in MAKE_THEIR_MODELS else modeldir.find_model(model)
        start = [f"model={json.dumps(source if '://' in source else str(Path(source).absolute()))}"]
    overrides = [*(set_ or []), *start]
    run(preset=preset, config=config, set_=overrides, phases=name, run_dir=out, corpus=corpus, as_json=as_json)


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="Recipe: mergekit's YAML.")],
    out_dir: Annotated[Path | None, typer.Argument(help="New folder for the model; not needed with --plan.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what becomes of each tensor, and do nothing.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random masks of DARE and DELLA.")] = 0,
    guard: Annotated[float, typer.Option(help="Farthest from the base, times the farthest model; 0 is any.")] = 4.0,
    shard_mb: Annotated[int | None, typer.Option(min=1, help="Megabytes per weight file; default: one file.")] = None,
    as_json: Json = False,
) -> None:
    """Merge safetensors checkpoints, streaming from disk to disk.

    Example: forge merge recipe.yml merged --plan
    """
    from phases.evomerge.describe import plan_json, plan_lines
    from phases.evomerge.plan import plan_merge
    from phases.evomerge.recipe import Recipe
    from phases.evomerge.stream import execute_plan

    planned = plan_merge(Recipe.load(config))
    if plan:
        _print_json(plan_json(planned)) if as_json else typer.echo("\n".join(plan_lines(planned)))
        return
    if out_dir is None:
        raise ConfigError.of("OUT_DIR", None, "missing", "name a new folder for the model, or give --plan")
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        bar = progress.add_task("hashing the models", total=planned.bytes)
        ref = execute_plan(
            planned,
            out_dir,
            seed=seed,
            guard=guard or None,
            shard_bytes=shard_mb and shard_mb * 1_000_000,
            on_step=lambda step: progress.update(bar, advance=step.bytes, description=step.name),
        )
    if as_json:
        _print_json(ref.model_dump(mode="json", exclude={"format"}))
    else:
        console.print(f"[bold]model[/] {ref.uri}: {ref.parameters:,} parameters, {ref.sha256[:12]}", soft_wrap=True)


@app.command()
def quantize(
    model: Annotated[
        str, typer.Argument(help="Model directory of ours, a run, or a LLaMA-like safetensors directory.")
    ],
    out: Annotated[str, typer.Argument(help="Folder for the quantised file and the tokenizer.")],
    form: Annotated[str, typer.Option("--format", help="onnx, gguf, torch or archive.")] = "onnx",
    exact: Annotated[bool, typer.Option("--exact", help="BitNet's arithmetic to the bit, but slower.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model with ternary weights. One that was not trained for it loses by it: phase 4 is what trains.

    Example: forge quantize runs/demo quantised --format archive
    """
    from phases import modeldir, storage
    from phases.bitnet.export import NAMES, quantise_directory
    from phases.quietstar.loading import can_think

    if form not in NAMES:
        raise ConfigError.of("--format", form, "not known", f"choose one of {', '.join(NAMES)}")
    source = modeldir.find_model(model) if storage.exists(storage.join(model, "journal")) else model
    path = quantise_directory(source, out, form, exact=exact)
    if can_think(source):
        typer.echo(f"{source} thinks; the file holds the model without its thoughts", err=True)
    size = path.stat().st_size
    if as_json:
        _print_json({"file": str(path), "bytes": size})
    else:
        console.print(f"[bold]file[/] {path}: {size / 1e6:,.2f} MB", soft_wrap=True)


@app.command()
def profile(
    file: Annotated[Path, typer.Argument(help="ONNX file of phase 4 or of forge quantize.")],
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Time on a busy machine too, and mark the times.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the memory and the speed of an exported file on this machine.

    Example: forge profile runs/demo/04_bitnet/model.onnx
    """
    from phases.bitnet.profiler import profile_memory, profile_speed

    speed = profile_speed(file, threads=threads, force=force)
    memory = profile_memory(file)
    if as_json:
        _print_json({"memory": memory.model_dump(), "speed": speed.model_dump()})
        return
    forced = f" (forced: others kept {speed.load:.2f} cores busy)" if speed.forced else ""
    lines = {
        "file": f"{memory.file / 1e6:,.2f} MB",
        "memory": f"{memory.peak_above_runtime / 1e6:,.2f} MB above the bare runtime, {memory.ratio:.2f} x the file, "
        f"{memory.page_faults_per_step:g} page faults per decode step",
        "decode": f"{speed.decode_tokens_per_second:,.0f} tokens/s, p50 {speed.decode_p50_ms:.3f} ms, "
        f"p95 {speed.decode_p95_ms:.3f} ms{forced}",
        "prefill": f"{speed.prefill_tokens_per_second:,.0f} tokens/s, {speed.prefill_tokens} in "
        f"{speed.prefill_p50_ms:.1f} ms{forced}",
    }
    for name, line in lines.items():
        console.print(f"[bold]{name:<8}[/]{line}", highlight=False, soft_wrap=True)


@app.command()
def audit(
    path: Annotated[str, typer.Argument(help="A run, a model directory, a JSON report or a tree of Python files.")],
    as_json: Json = False,
) -> None:
    """Look for claims that nothing was measured for, and measure again what can be. Exit code 1 where one is refuted.

    Example: forge audit runs/demo
    """
    from phases.baking.validation.audit import audit_apart

    report = audit_apart(path)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        for finding in report.findings:
            line = f"{finding.test} {finding.path}:{finding.where}: {finding.why}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        checked = ", ".join(f"{count} {what}" for what, count in report.checked.items())
        console.print(f"{len(report.findings)} refuted; looked at {checked}", highlight=False, soft_wrap=True)
    if not report.clean:
        raise typer.Exit(1)


app.command()(baking_commands.bake)
app.command()(baking_commands.chat)
app.command()(baking_commands.optimize)

compliance = typer.Typer(no_args_is_help=True, help="How a code base stands by published rules.")
app.add_typer(compliance, name="compliance")


@compliance.command()
def pot10(
    path: Annotated[Path, typer.Argument(help="A Python file or a folder.")],
    as_json: Json = False,
) -> None:
    """Check the ten rules of Holzmann's "Power of Ten" (2006), adapted to Python: findings, a table and a score.

    Example: forge compliance pot10 phases
    """
    from phases.compliance.check import check

    report = check(path)
    if as_json:
        _print_json(report.model_dump(mode="json") | {"score": report.score, "table": report.table})
        return
    for finding in report.findings:
        console.print(str(finding), markup=False, highlight=False, soft_wrap=True)
    table = Table(title=f"{report.functions} functions in {report.files} files")
    for column in ("rule", "kept by"):
        table.add_column(column)
    for rule, share in report.table.items():
        table.add_row(rule, f"{share:.1%}")
    console.print(table)
    console.print(f"score {report.score:.1%} of (function, rule) pairs")


app.command()(generate_command.generate)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Model directory, or a run: its newest model.")],
    host: Annotated[str, typer.Option(help="Other than loopback needs the environment variable FORGE_API_KEY.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
) -> None:
    """Serve a model with Ray Serve behind an OpenAI-compatible API until interrupted."""
    from phases import modeldir, storage
    from serve.app import serve_model, wait_for_interrupt

    name = storage.folder_name(model)
    with serve_model(modeldir.find_model(model), name=name, host=host, port=port) as served:
        console.print(f"serving [bold]{name}[/] at {served.url}/v1 (Ctrl-C stops)", soft_wrap=True)
        wait_for_interrupt()


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="Benchmark to run; none lists them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions and seeds.")] = False,
    names: Annotated[bool, typer.Option("--names", help="Print the bare names, one a line.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the raw samples.")] = Path("bench-results"),
    faults: Annotated[int | None, typer.Option(help="Of chaos: faults per seed; of baking_faults: in all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of chaos: the one seed, instead of 3; of baking_faults.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Of bitnet: time on a busy machine, and mark it.")] = False,
    as_json: Json = False,
) -> None:
    """Measure ratios against baselines of the same run. Exit code 1 where a figure falls short of its goal."""
    from benchmarks.harness import discover, execute

    benchmarks = discover()
    if name is None:
        for key, summary in benchmarks.items():
            typer.echo(key if names else f"{key:<12} {summary}")
        return
    if name not in benchmarks:
        raise ConfigError.of("benchmark", name, "not known", f"choose one of {', '.join(benchmarks)}")
    with contextlib.redirect_stdout(sys.stderr):  # Tune reports there what is not a figure
        result = execute(name, quick=quick, out=out, faults=faults, seed=seed, force=force or None)
    _print_json(result.model_dump(mode="json")) if as_json else _show_figures(result)
    if not result.ok:
        raise typer.Exit(1)


def _show_figures(result: Any) -> None:
    table = Table(title=f"{result.bench} ({result.seconds:.0f} s)")
    for column in ("figure", "value", "interval", "goal", "", "against"):
        table.add_column(column, no_wrap=column == "figure")
    for figure in result.figures:
        interval = "" if figure.low is None else f"{figure.low:.4g} .. {figure.high:.4g}"
        goal = "" if figure.goal is None else f"{'>=' if figure.better == 'higher' else '<='} {figure.goal:g}"
        mark = "" if figure.goal is None else "[green]ok[/]" if figure.ok else "[red]missed[/]"
        against = "" if figure.baseline is None else f"{figure.baseline.what}: {figure.baseline.value:.4g}"
        table.add_row(figure.key, f"{figure.value:.4g} {figure.unit}", interval, goal, mark, against)
    console.print(table)


def _show_result(run_dir: str, result: Any, as_json: bool) -> None:
    if as_json:
        _print_json({"run": run_dir, "result": result.model_dump(mode="json")})
        return
    width = max((len(claim.key) for claim in result.claims), default=0)
    for claim in result.claims:
        baseline = "" if claim.baseline is None else f"  ({claim.baseline.what}: {claim.baseline.value:,.6g})"
        target = "" if claim.target is None else f"  target {claim.target:g} {'met' if claim.met else 'missed'}"
        line = f"{claim.key:<{width}}  {claim.value:,.6g} {claim.unit}{baseline}{target}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for note in result.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]run[/] {run_dir}", soft_wrap=True)
    console.print(f"{result.duration_seconds:.0f} s. Next: forge verify, forge generate or forge serve with this path")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def main() -> NoReturn:
    """Entry point: errors meant for people are printed as one line each and end with exit code 1."""
    try:
        app()
    except ForgeError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
