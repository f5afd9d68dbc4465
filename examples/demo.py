"""The whole way in one script: a corpus, the phases, verification, a served model, one completion over HTTP, a report.

`make demo` runs it. It uses the same public functions as the command line, so it is also the shortest example of them.
"""

import argparse
import shutil
import time
from pathlib import Path

import httpx

from coordinators.config import load_config
from coordinators.driver import start_run
from coordinators.report import write_report
from coordinators.verify import verify
from phases import modeldir
from serve.app import ServedModel, serve_model

PROMPT = "def read_lines(path):\n    "


def complete_over_http(served: ServedModel) -> str:
    """Ask the endpoint for one completion as any OpenAI client would, and return the text."""
    response = httpx.post(
        f"{served.url}/v1/completions",
        json={"model": served.name, "prompt": PROMPT, "max_tokens": 48, "temperature": 0.7, "seed": 1},
        timeout=120,
    )
    response.raise_for_status()
    return str(response.json()["choices"][0]["text"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--run-dir", default=None, help="default: runs/demo-<preset>, made anew each time")
    arguments = parser.parse_args()
    run = arguments.run_dir or f"runs/demo-{arguments.preset}"
    if arguments.run_dir is None:
        shutil.rmtree(run, ignore_errors=True)

    started = time.monotonic()
    start_run(load_config(arguments.preset), run)
    findings = list(verify(run))
    refuted = [finding.subject for finding in findings if not finding.ok]
    if refuted:
        raise SystemExit(f"forge verify refutes {', '.join(refuted)}")

    with serve_model(modeldir.find_model(run), name="demo", port=0) as served:
        text = complete_over_http(served)
    report = Path(write_report(run)).resolve()

    print(f"\nPOST /v1/completions {PROMPT!r}\n-> {text!r}\n")
    claims = sum(finding.claimed is not None for finding in findings)
    print(f"{claims} claims, each measured again by forge verify. {time.monotonic() - started:.0f} s in all.")
    print(f"report: {report}")
    print(f"talk to it: .venv/bin/forge generate {run} --prompt 'def main('")
    print(f"serve it:   .venv/bin/forge serve {run}")


if __name__ == "__main__":
    main()
