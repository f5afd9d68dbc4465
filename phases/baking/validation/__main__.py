"""`python -m phases.baking.validation PATH`: one audit in a process of its own, its report as JSON on stdout."""

import argparse
import sys

from phases.baking.validation.audit import audit
from phases.errors import ForgeError


def main() -> int:
    """Return 0 where nothing was refuted, 1 where something was, 2 where nothing could be audited."""
    parser = argparse.ArgumentParser(prog="python -m phases.baking.validation", description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--no-probes", action="store_true", help="do not measure a run's claims again")
    arguments = parser.parse_args()
    try:
        report = audit(arguments.path, remeasure=not arguments.no_probes)
    except ForgeError as error:
        print(error, file=sys.stderr)
        return 2
    print(report.model_dump_json(indent=2))
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
