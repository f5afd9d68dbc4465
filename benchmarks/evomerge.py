"""Merging and evolution: against mergekit, against other searches, and under faults."""

from benchmarks.evomerge_faults import fault_figures
from benchmarks.evomerge_methods import method_figures
from benchmarks.evomerge_search import search_figures
from benchmarks.evomerge_stream import stream_figures
from benchmarks.harness import Figure


def run(quick: bool) -> list[Figure]:
    """Measure all four; the first run trains the specialists that are merged."""
    return [*method_figures(quick), *stream_figures(quick), *search_figures(quick), *fault_figures(quick)]
