"""The engine drives anyone's Tuner, goes on after a restore, and takes failed trials as lost."""

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from actors.evo_searcher import EvoSearcher
from phases.evomerge.engine import EvolutionConfig
from phases.evomerge.space import Choice, Real, Space

SPACE = Space((Choice("kind", ("a", "b")), Real("x", 0, 1), Real("y", 0, 1, frozenset({"b"}))), switch="kind")
CONFIG = EvolutionConfig(population=4, generations=3, elitism=1, patience=None)


def score(config: dict[str, Any]) -> float:
    return float(config["x"]) + (float(config["y"]) if config["kind"] == "b" else 0)


def drive(searcher: EvoSearcher, start: int = 0) -> int:
    """Run trials one by one until the searcher is finished; return how many there were."""
    count = start
    while (config := searcher.suggest(f"t{count}")) != EvoSearcher.FINISHED:
        assert isinstance(config, dict)
        searcher.on_trial_complete(f"t{count}", {"score": score(config)})
        count += 1
    return count


def test_a_search_saved_and_restored_ends_like_one_that_was_not(tmp_path: Path) -> None:
    straight = EvoSearcher(SPACE, CONFIG, metric="score")
    assert drive(straight) == 4 + 2 * 3
    stopped = EvoSearcher(SPACE, CONFIG, metric="score")
    for number in range(5):
        config = stopped.suggest(f"t{number}")
        assert isinstance(config, dict)
        stopped.on_trial_complete(f"t{number}", {"score": score(config)})
    stopped.suggest("running")
    stopped.save(str(tmp_path / "state"))
    resumed = EvoSearcher(SPACE, CONFIG, metric="score")
    resumed.restore(str(tmp_path / "state"))
    drive(resumed, 5)
    assert resumed.engine.state() == straight.engine.state()


def test_a_generation_waits_for_its_last_trial_and_failures_are_lost() -> None:
    searcher = EvoSearcher(SPACE, CONFIG, metric="score", mode="min")
    configs = [searcher.suggest(f"t{n}") for n in range(4)]
    assert all(isinstance(config, dict) for config in configs)
    assert searcher.suggest("t4") is None
    for number in range(3):
        searcher.on_trial_complete(f"t{number}", {"score": 1.0 + number})
    searcher.on_trial_complete("t3", error=True)
    assert searcher.engine.history[0].lost == 1
    assert searcher.engine.history[0].best_fitness == -1.0


@pytest.mark.usefixtures("ray_cluster")
def test_it_is_a_search_algorithm_of_ray_tune(tmp_path: Path) -> None:
    def trainable(config: dict[str, Any]) -> dict[str, float]:
        return {"score": float(config["x"])}

    config = EvolutionConfig(population=2, generations=2, elitism=1, patience=None)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=EvoSearcher(SPACE, config, metric="score"), num_samples=-1, max_concurrent_trials=2
        ),
        run_config=tune.RunConfig(name="t", storage_path=str(tmp_path), verbose=0),
    )
    results = tuner.fit()
    assert len(results) == 2 + 1
    assert not results.errors
