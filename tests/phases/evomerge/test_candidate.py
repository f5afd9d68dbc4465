"""From genomes to models: every technique builds one that runs, and the simple ones are what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phases.errors import ConfigError
from phases.evomerge.candidate import Parents, Positions, build
from phases.evomerge.config import EvoMergeConfig
from phases.evomerge.evaluate import Evaluator, Race, sample_model, scratch_model
from phases.evomerge.fitness import FitnessRows
from phases.evomerge.genome import GROUPS, depth_of, first_genomes, group_of, identity, layer_of, merge_space
from phases.evomerge.ledger import Ledger, Lost
from phases.evomerge.shared import from_arrays, to_arrays
from phases.evomerge.space import Space

ALL = EvoMergeConfig(
    techniques=(
        *("linear", "slerp", "ties", "dare", "franken", "dfs", "task_arithmetic"),
        *("breadcrumbs", "della", "data_flow"),
    ),
    depth_changes=True,
)


def space_of(parents: Parents) -> Space:
    return merge_space(ALL, parents.names, parents.n_layers)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_every_genome_builds_a_model_that_runs_or_is_refused_by_name(
    seed: int, parents: Parents, rows: FitnessRows
) -> None:
    genome = space_of(parents).sample(np.random.default_rng(seed))
    if genome["technique"] in ("franken", "data_flow"):
        genome["copies.0"] = 1
    config, tensors = build(genome, parents, seed, guard=50.0)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    samples = sample_model(config, tensors, rows)
    assert 0 < samples.measured().perplexity < np.inf


@pytest.mark.parametrize("name", ["reasoning", "memory", "adaptive"])
def test_the_identity_is_the_parent_bit_by_bit(name: str, parents: Parents) -> None:
    config, tensors = build(identity(parents.names, name), parents, 0, 4.0)
    assert config == parents.configs[name]
    assert all(torch.equal(tensors[key], tensor) for key, tensor in parents.models[name].items())


def test_the_first_genomes_are_in_the_space_and_start_with_the_best_parent(parents: Parents) -> None:
    space = space_of(parents)
    starts = first_genomes(ALL, parents.names, "memory", parents.n_layers)
    assert {start["technique"] for start in starts} == set(ALL.techniques)
    assert starts[0] == identity(parents.names, "memory")
    for start in starts:
        genome = space.complete(start, np.random.default_rng(0))
        missing = set(space.expressed(genome)) - set(start)
        assert not missing


def test_parents_are_never_written_to(parents: Parents) -> None:
    before = {name: {k: v.clone() for k, v in tensors.items()} for name, tensors in parents.models.items()}
    rng = np.random.default_rng(0)
    for technique in ALL.techniques:
        genome = space_of(parents).sample(rng) | {"technique": technique, "copies.0": 1}
        build(genome, parents, 0, 50.0)
    for name, tensors in parents.models.items():
        assert all(torch.equal(before[name][key], tensor) for key, tensor in tensors.items())


def test_layers_are_stacked_renumbered_and_repeated(parents: Parents, rows: FitnessRows) -> None:
    genome = {"technique": "franken", "settings": "memory", "ends": "memory"}
    genome |= {f"layer.{i}": name for i, name in enumerate(parents.names)}
    genome |= {"copies.0": 2, "copies.1": 0, "copies.2": 1}
    config, tensors = build(genome, parents, 0, 4.0)
    assert config.n_layers == 3
    sources = [("reasoning", 0), ("reasoning", 0), ("adaptive", 2)]
    for target, (parent, layer) in enumerate(sources):
        expected = parents.models[parent][f"blocks.{layer}.qkv.weight"]
        assert torch.equal(tensors[f"blocks.{target}.qkv.weight"], expected)
    assert torch.equal(tensors["embedding.weight"], parents.models["memory"]["embedding.weight"])


def test_a_scale_of_the_data_flow_scales_what_the_layer_adds(parents: Parents) -> None:
    genome = {"technique": "data_flow", "settings": "memory", "ends": "memory"}
    genome |= {f"layer.{i}": "memory" for i in range(3)} | {"scale.0": 0.5, "scale.1": 1.0, "scale.2": 1.0}
    config, tensors = build(genome, parents, 0, 4.0)
    plain, scaled = scratch_model(config, parents.models["memory"]), scratch_model(config, tensors)
    x, attended = torch.randn(5, 24), torch.randn(5, 24)
    zero = torch.zeros_like(x)
    alone = plain.blocks[0].out(attended)
    assert torch.allclose(scaled.blocks[0].out(attended), 0.5 * alone)
    assert torch.allclose(scaled.blocks[0].mix(x, zero) - x, 0.5 * (plain.blocks[0].mix(x, zero) - x), atol=1e-6)


def test_every_tensor_has_a_group_and_a_depth(parents: Parents) -> None:
    groups = {group_of(name, 3) for name in parents.base}
    assert groups == set(GROUPS)
    assert [depth_of(f"blocks.{i}.qkv.weight", 3) for i in range(3)] == [0.25, 0.5, 0.75]
    assert depth_of("embedding.weight", 3) == 0
    assert depth_of("norm.weight", 3) == 1
    assert layer_of("memory.q.weight") is None


def test_another_architecture_is_refused_by_name(parents: Parents) -> None:
    broken = dict(parents.models["memory"]) | {"norm.weight": torch.zeros(3)}
    with pytest.raises(ConfigError, match=r"parent memory.*norm\.weight"):
        Parents(parents.base, {"memory": broken}, parents.configs)


def test_parents_survive_the_way_through_arrays_read_only(parents: Parents) -> None:
    arrays = to_arrays(parents)
    for group in ("models", "fishers", "grams"):
        for tensors in arrays[group].values():
            for array in tensors.values():
                array.setflags(write=False)
    back = from_arrays(arrays)
    assert back.names == parents.names
    genome = identity(back.names, "memory")
    built = build(genome, back, 0, 4)[1]
    assert all(torch.equal(tensor, parents.models["memory"][key]) for key, tensor in built.items())
    for name, grams in parents.grams.items():
        assert all(torch.equal(back.grams[name][key], gram) for key, gram in grams.items())


def test_positions_estimate_distances_in_units_of_the_parents(parents: Parents) -> None:
    positions = Positions(parents, seed=0)
    found = {name: np.array(positions.of(tensors)) for name, tensors in parents.models.items()}
    apart = [np.linalg.norm(found[a] - found[b]) for a in found for b in found]
    assert max(apart) == pytest.approx(1)
    exact = {
        (a, b): sum(float((parents.models[a][k] - parents.models[b][k]).square().sum()) for k in parents.base) ** 0.5
        for a in found
        for b in found
    }
    ratios = [np.linalg.norm(found[a] - found[b]) / exact[a, b] for a in found for b in found if a != b]
    assert max(ratios) / min(ratios) < 1.15


def test_a_race_spares_the_hopeless_and_changes_nothing_for_the_rest(parents: Parents, rows: FitnessRows) -> None:
    positions, genome = Positions(parents, 0), identity(parents.names, "memory")
    config, tensors = build(genome, parents, 0, 4.0)
    full = sample_model(config, tensors, rows).measured()
    few = sample_model(config, tensors, rows.part(0.5)).measured()
    assert few.perplexity != full.perplexity
    for limit, expected in ((few.perplexity * 1.01, full), (few.perplexity * 0.99, few)):
        evaluator = Evaluator(parents, rows, 0, 4.0, "x", Race(0.5, limit))
        assert evaluator.measure(genome, positions).perplexity == expected.perplexity
        assert evaluator.key(genome) != Evaluator(parents, rows, 0, 4.0, "x").key(genome)


def test_the_ledger_measures_once_and_remembers_losses(
    parents: Parents, rows: FitnessRows, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = Ledger(str(tmp_path_factory.mktemp("ledger")))
    evaluator = Evaluator(parents, rows, seed=0, guard=4.0, fingerprint="x")
    positions = Positions(parents, 0)
    genome = identity(parents.names, "memory")
    first = evaluator.recorded(genome, positions, ledger)
    assert len(ledger) == 1
    assert evaluator.recorded(genome, positions, ledger) == first == ledger.get(evaluator.key(genome))
    other = identity(parents.names, "reasoning")
    ledger.put(evaluator.key(other), Lost("broken"))
    with pytest.raises(Exception, match="lost before: broken"):
        evaluator.recorded(other, positions, ledger)
    assert evaluator.key(genome) != Evaluator(parents, rows, 0, 4.0, "y").key(genome)
