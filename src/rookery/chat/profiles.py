"""Sampling settings by name, each as its source gives them.

g1, g1-creative   chat with RWKV-7 G1 (rwkv.cn, from the model cards; its penalties fade, so rule "rapid")
careful, exact    answers that must be right; tools, choices and questions about a given text (same)
demo, demo-state  ChatRWKV's API_DEMO_CHAT.py, and the same with a tuned state
raven             ChatRWKV's v2/chat.py
pip               PIPELINE_ARGS of the `rwkv` package
runner, lightning defaults of RWKV-Runner and of rwkv_lightning
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rookery.sampling import Sampling

PROFILES: Mapping[str, Sampling] = MappingProxyType(
    {
        "g1": Sampling(top_p=0.5, presence=2.0, frequency=0.1, penalty="rapid", decay=0.99),
        "g1-creative": Sampling(
            temperature=0.6, top_p=0.7, presence=2.0, frequency=0.2, penalty="rapid", decay=0.99
        ),  # top_p 0.6 to 0.8 in the source
        "careful": Sampling(temperature=0.3, top_p=0.3),
        "exact": Sampling(temperature=0.0, top_p=0.0),
        "demo": Sampling(top_p=0.3, presence=0.5, frequency=0.5),
        "demo-state": Sampling(top_p=0.2, presence=0.3, frequency=0.3),
        "raven": Sampling(temperature=1.2, top_p=0.5, presence=0.4, frequency=0.4),
        "pip": Sampling(top_p=0.85, presence=0.2, frequency=0.2),
        "runner": Sampling(top_p=0.3, frequency=1.0),
        "lightning": Sampling(top_p=0.6, top_k=20, presence=1.0, frequency=0.1, penalty="rapid"),
    }
)
