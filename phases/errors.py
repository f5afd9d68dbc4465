"""The errors that Agent Forge raises on purpose.

Each message names the thing that is wrong and what to do about it, so that the command line can print it as it is.
Anything that is not a `ForgeError` is a bug or a failure of the machine, and keeps its traceback.
"""


class ForgeError(Exception):
    """Base of all errors with a message meant for a person."""


class ConfigError(ForgeError):
    """A configuration that cannot work, found before any work starts."""

    @classmethod
    def of(cls, field: str, value: object, problem: str, fix: str) -> "ConfigError":
        """Name the `field`, its `value`, the `problem` and the `fix` in one line."""
        return cls(f"{field} = {value!r}: {problem}; {fix}")


class CorpusError(ForgeError):
    """A corpus that is missing, empty or unreadable."""


class ArtifactError(ForgeError):
    """A file of a run or model that is missing, torn, altered or of another version."""


class BusyError(ForgeError):
    """A run directory that another live process is working in."""


class NumericalError(ForgeError):
    """A loss, gradient or weight that is not finite."""
