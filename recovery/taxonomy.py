"""The names of what can happen to a task and of what can be done about it."""

from enum import StrEnum


class ErrorClass(StrEnum):
    """From the least grave to the gravest."""

    CANCELLED = "cancelled"  # somebody stopped it on purpose
    FENCED = "fenced"  # somebody else does it now: this one stops quietly, and nothing is done again
    TRANSIENT = "transient"  # may well succeed when done again: timeouts, connections, lost objects
    CRASH = "crash"  # the process or node that did it is gone
    RESOURCE = "resource"  # out of memory, disk or handles: the same again fails again
    NUMERICAL = "numerical"  # not finite or divergent
    VALIDATION = "validation"  # input, configuration or result is wrong; doing it again changes nothing
    UNKNOWN = "unknown"  # a bug, until somebody says otherwise


class Strategy(StrEnum):
    """What can be done about a failed task."""

    RETRY = "retry"  # the same again, after a while
    FALLBACK = "fallback"  # the smaller or slower variant that the task declares
    RESTART = "restart"  # a new actor, on another node where that one is bad, with its state restored
    ROLLBACK = "rollback"  # from the last good checkpoint, with a lower learning rate
    ISOLATE = "isolate"  # go on without it; the result is degraded
    ESCALATE = "escalate"  # stop at a consistent point and ask a person


RERUNS = (Strategy.RETRY, Strategy.FALLBACK, Strategy.RESTART, Strategy.ROLLBACK)
