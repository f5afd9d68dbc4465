"""The theatre detector: no unmeasured claim gets through. `audit(path)` measures claims again from the files."""

from phases.baking.validation.audit import audit, audit_apart
from phases.baking.validation.finding import TESTS, Finding, Report

__all__ = ["TESTS", "Finding", "Report", "audit", "audit_apart"]
