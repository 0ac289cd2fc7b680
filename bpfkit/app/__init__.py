# SPDX-License-Identifier: Apache-2.0
"""What programs are made of: options, signals, life cycle, where a program is attached, sinks."""
