"""cluster.yaml fits Ray's own schema, and the command in the documentation reaches forge.py as it is typed."""

import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.scripts import scripts

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cluster() -> dict[str, object]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_it_fits_rays_schema(cluster: dict[str, object]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]  # type: ignore[operator]


def test_the_schema_would_notice_a_mistake(cluster: dict[str, object]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"available_nodes": {}}, schema)


def test_ray_submit_passes_the_command_on() -> None:
    typed = ["cluster.yaml", "forge.py", "run", "--preset", "cognate-25m"]
    context = scripts.submit.make_context("submit", typed)
    assert context.params["script"] == "forge.py"
    assert context.params["script_args"] == ("run", "--preset", "cognate-25m")
