"""From a model file to the best file and settings for a purpose, every candidate measured against the fastest fp32.

The order: what the runtime makes of the file as it is (four levels, and the ablation of its passes); then each
transformed file, ablated in turn; then all of them and the torch model, where there is one, in one interleaved timing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from phases.baking.optimise.ablation import Ablation, ablate
from phases.baking.optimise.candidates import Candidate, Target, best, verdict
from phases.baking.optimise.inputs import Inputs
from phases.baking.optimise.memory import peak_bytes
from phases.baking.optimise.quality import Outputs, agreement, outputs
from phases.baking.optimise.session import Feeds, SessionSettings, call, open_session, runs
from phases.baking.optimise.timing import median, speed_ratio
from phases.baking.optimise.transforms import TRANSFORMS, Transform
from phases.errors import ForgeError
from phases.timing import Samples, interleaved

Show = Callable[[str], None]
EAGER = "torch eager"


@dataclass(frozen=True)
class Search:
    """What is optimised for what. `rounds` are of each timing; `eager` runs the torch model on a feed."""

    target: Target = "latency"
    max_loss: float = 0.01
    rounds: int = 15
    transforms: Mapping[str, Transform] = field(default_factory=lambda: TRANSFORMS)
    eager: Callable[[Feeds], object] | None = None
    on_step: Show = lambda text: None


@dataclass(frozen=True)
class Outcome:
    """All that was tried. `baseline` is the fastest full-precision setting, which wins where nothing beats it."""

    baseline: Candidate
    candidates: list[Candidate]  # the baseline first
    chosen: Candidate
    ablations: dict[str, Ablation]
    failed: dict[str, str]  # transform -> why it could not be made
    samples: Samples


def optimise(model: Path, folder: Path, inputs: Inputs, search: Search) -> Outcome:
    """Try everything on the file `model`; files go to `folder`. Raises `ArtifactError` where the model cannot run."""
    files, failed = transformed(model, folder, inputs, search)
    return compared(files, failed, inputs, search)


def transformed(model: Path, folder: Path, inputs: Inputs, search: Search) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files to compare by name, `fp32` being the model itself, and why others could not be made."""
    files, failed = {"fp32": model}, dict[str, str]()
    for name, transform in search.transforms.items():
        search.on_step(f"making {name}")
        try:
            files[name] = _transformed(transform, name, model, folder, inputs)
        except (ForgeError, ValueError, RuntimeError, KeyError) as error:  # a quantiser that cannot take this graph
            failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
    return files, failed


def compared(files: Mapping[str, Path], failed: dict[str, str], inputs: Inputs, search: Search) -> Outcome:
    """Ablate, time and compare files, and choose."""
    ablations, model = dict[str, Ablation](), files["fp32"]
    for name, file in files.items():
        show = partial(_prefixed, search.on_step, name)
        ablations[name] = ablate(file, inputs.evaluation[0], search.rounds, show)
    tried = {name: (file, ablations[name].settings) for name, file in files.items()}
    samples = _final_timing(model, tried, inputs.evaluation[0], search)
    wanted = outputs(open_session(model, SessionSettings(level="off")), inputs.evaluation)  # as the file was given
    known = [_measured(name, file, settings, samples, inputs, wanted) for name, (file, settings) in tried.items()]
    candidates = [known[0], *(verdict(c, known[0], search.max_loss) for c in known[1:])]
    return Outcome(known[0], candidates, best(candidates, search.target), ablations, failed, samples)


def _prefixed(show: Show, name: str, text: str) -> None:
    show(f"{name}: {text}")


def _transformed(transform: Transform, name: str, model: Path, folder: Path, inputs: Inputs) -> Path:
    """Return the file. Raises `ValueError` where it does not run, and leaves none then."""
    out = folder / f"{name}.onnx"
    transform(model, out, inputs.calibration)
    if not runs(out, SessionSettings(level="off"), inputs.evaluation[0]):
        out.unlink()
        raise ValueError("what was made of the file does not run")
    return out


def _final_timing(
    model: Path, tried: Mapping[str, tuple[Path, SessionSettings]], feeds: Feeds, search: Search
) -> Samples:
    """Time the candidates beside every full-precision baseline: the four levels, the ablated one and torch."""
    search.on_step(f"timing {len(tried)} candidates against full precision")
    settings = {f"fp32 {level}": (model, SessionSettings(level=level)) for level in ("off", "all")}
    calls = dict[str, Callable[[], object]]()
    settings = {name: each for name, each in settings.items() if runs(*each, feeds)}
    for name, (file, given) in (settings | dict(tried)).items():
        calls[name] = call(file, given, feeds)
    if (eager := search.eager) is not None:
        calls[EAGER] = lambda: eager(feeds)
    return interleaved(calls, 2 * search.rounds)


def _measured(
    name: str, file: Path, settings: SessionSettings, samples: Samples, inputs: Inputs, wanted: list[Outputs]
) -> Candidate:
    found = outputs(open_session(file, settings), inputs.evaluation)
    close = agreement(wanted, found)
    fastest = min(filter(is_full_precision, samples), key=lambda n: median(samples[n]))
    ratio = speed_ratio(samples[fastest], samples[name])
    return Candidate(
        name=name,
        file=str(file),
        settings=settings,
        seconds=median(samples[name]),
        speed=ratio.value,
        speed_low=ratio.low,
        speed_high=ratio.high,
        bytes=file.stat().st_size,
        memory=peak_bytes(file, settings, inputs.evaluation[0]),
        cosine=close.mean,
        loss=close.loss if math.isfinite(close.loss) else math.inf,
        samples=tuple(samples[name]),
    )


def is_full_precision(name: str) -> bool:
    """Say whether a name in the final timing is of a full-precision baseline."""
    return name.startswith("fp32") or name == EAGER
