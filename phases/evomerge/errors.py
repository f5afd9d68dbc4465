"""What a merge refuses to do, with a message that says which tensor, which method, which value, and what to do."""

from phases.errors import ForgeError


class MergeError(ForgeError):
    """Inputs that cannot be merged, or a merged tensor that would be garbage."""

    def inside(self, tensor: str, method: str) -> "MergeError":
        """Return the same error with the `tensor` and `method` that it happened in named first."""
        return MergeError(f"{tensor or 'tensor'}: {method}: {self}")
