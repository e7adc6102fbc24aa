"""Speed and memory against context: RWKV beside other architectures, at equal parameters on one machine.

`peers` builds the models that are compared, `sweep` measures them point by point, each in a process of its own.
"""

from __future__ import annotations
