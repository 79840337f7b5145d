"""Running a bundle on the machine it landed on: NumPy in, NumPy out, no compiler.

load opens a bundle and gives a Session; check_bundle says how its variants fit this machine without loading any.
"""

from tvmbridge.runtime.choose import Verdict, check_bundle
from tvmbridge.runtime.session import Session, load

__all__ = ["Session", "Verdict", "check_bundle", "load"]
