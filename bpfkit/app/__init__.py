# SPDX-License-Identifier: Apache-2.0
"""What programs are made of: options, signals, life cycle, where a program is attached, sinks."""

import sys

# A program starts in hundredths of a second only from bytecode, so it keeps its own even where
# PYTHONDONTWRITEBYTECODE (container images set it) would make Python compile thousands of lines at
# every start.  A directory that cannot be written is no problem.  The library (bpfkit, bpfkit.core)
# never imports this package and leaves the setting alone.
sys.dont_write_bytecode = False
