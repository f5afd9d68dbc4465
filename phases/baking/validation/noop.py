"""T3: an optimisation that changed nothing. Tensors are compared by their bytes, whatever they are called."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from phases import storage
from phases.baking.validation.finding import Finding
from phases.baking.validation.statement import Statement
from phases.baking.validation.weights import digest, stored_tensors


def same_model(before: Path, after: Path) -> str | None:
    """Say in what way two models are the same, None where they differ.

    A changed header, other tensor names or another order of tensors make no other model.
    """
    if before.is_file() and after.is_file() and storage.sha256(str(before)) == storage.sha256(str(after)):
        return "the files are the same byte for byte"
    first, second = (Counter(digest(stored.tensor) for stored in stored_tensors(path)) for path in (before, after))
    if not first or first != second:
        return None
    if {before.suffix, after.suffix} == {".onnx"} and node_histogram(before) != node_histogram(after):
        return None
    return f"all {first.total()} tensors are the same bit for bit"


def node_histogram(path: Path) -> Counter[str]:
    """Count the operators of an ONNX graph, those of its subgraphs included."""
    import onnx

    def count(graph: "onnx.GraphProto") -> Counter[str]:
        found = Counter[str]()
        for node in graph.node:
            found[f"{node.domain}:{node.op_type}"] += 1
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    found += count(inner)
        return found

    return count(onnx.load(str(path), load_external_data=False).graph)


def claims_change(statement: Statement) -> bool:
    """Say whether a statement claims that something became different."""
    if statement.before is not None and statement.after is not None:
        return statement.before != statement.after
    return not statement.is_ratio or abs(statement.value - 1) > 0.01


def check(statement: Statement) -> Iterator[Finding]:
    """Find a gain claimed for a model that is the one before."""
    before, after = statement.at("before"), statement.at("after")
    hashes = statement.sha256.get("before"), statement.sha256.get("after")
    reason = None
    if before is not None and after is not None and before.exists() and after.exists():
        reason = same_model(before, after)
    elif hashes[0] is not None and hashes[0] == hashes[1]:
        reason = "the hashes of before and after are the same"
    if reason is not None and claims_change(statement):
        yield Finding(
            test="T3", path=statement.source, where=statement.key, claimed=statement.value, measured=1.0, why=reason
        )
