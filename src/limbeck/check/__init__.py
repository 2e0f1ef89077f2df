"""The common suite: what every method must pass, for the library and for its users.

from limbeck.check import check_method
for finding in check_method("kd"):
    print(finding.check, finding.verdict, finding.said)
"""

from limbeck.check.suite import CHECKS, Finding, check_method

__all__ = ["CHECKS", "Finding", "check_method"]
