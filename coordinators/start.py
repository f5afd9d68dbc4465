"""A run that starts from somebody's model: the model is copied into it, and its corpus gets the model's tokenizer."""

from actors.agent import Task
from actors.cognate import CorpusBuilder
from coordinators.config import PipelineConfig
from coordinators.phase import PhaseCoordinator, Role, RunContext
from phases import modeldir, rundir, storage


async def take_model(context: RunContext, phase: str, model: str, config: PipelineConfig) -> None:
    """Bring `model` and a corpus into the run, as the first tasks of `phase`. What is there already stays."""
    tokenizer = storage.join(context.run, rundir.START, modeldir.TOKENIZER)
    corpus = config.corpus.model_copy(update={"tokenizer": tokenizer})
    tasks = [
        Task("model", "corpus", "take_model", {"uri": model}),
        Task("corpus", "corpus", "prepare", {"config": corpus, "seed": config.seed}, after=("model",)),
    ]
    await PhaseCoordinator(context, phase).run_plan(tasks, {"corpus": Role(CorpusBuilder, cpus=1)})
