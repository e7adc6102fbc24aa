"""Which windows of the token stream a step reads: RWKV-LM's order, a function of the sample number alone.

The stream is cut into windows of ctx tokens. With p the largest prime below their number that is 2 modulo 3, cubing
permutes the residues of p, so the samples 1, 2, 3, ... read each of the first p windows once in every p samples, in
an order that looks random. What lies behind them, tokens[p*ctx + 1:], is never read: of 228 windows or more at
most a tenth, of a handful up to three fifths; repeating the documents in other orders (`rookery data --repeat`) helps.

A step reads the same samples however they are shared out, so a run can go on with other processes or micro batches.
Source: RWKV-LM RWKV-v7/train_temp/src/dataset.py.
"""

from __future__ import annotations

from math import isqrt, sqrt

from rookery.errors import InputError


def magic_prime(slots: int) -> int:
    """The largest prime below `slots` that is 2 modulo 3. Raises InputError for fewer than 3 slots."""
    for n in range(slots - 1, 1, -1):
        if n % 3 == 2 and _is_prime(n):
            return n
    raise InputError(
        f"the data fill {max(0, slots)} windows of ctx_len tokens; 3 are wanted: more data or less ctx_len"
    )


def prime_for(tokens: int, ctx: int) -> int:
    """The magic prime of a stream. Raises InputError that says which context would fit."""
    if tokens // ctx < 3:
        fits = f"ctx_len {tokens // 3} would fit, or" if tokens >= 3 else "give"
        raise InputError(f"{tokens} tokens are too few for ctx_len {ctx}, which wants {3 * ctx}: {fits} more data")
    return magic_prime(tokens // ctx)


def samples(step: int, batch: int, rank: int = 0, world: int = 1) -> range:
    """The numbers of the samples that process `rank` of `world` reads in this step, of `batch` in all.

    Steps begin with 0, samples with 1. Raises InputError where `batch` cannot be shared out evenly.
    """
    if batch % world:
        raise InputError(f"a batch of {batch} cannot be shared by {world} processes; give a multiple of {world}")
    return range(1 + step * batch + rank, 1 + (step + 1) * batch, world)


def start(sample: int, prime: int, ctx: int) -> int:
    """Where in the stream the ctx + 1 tokens of a sample begin: inputs all but the last, targets all but the first."""
    factor = int(prime * ((sqrt(5) - 1) / 2))
    return factor * sample**3 % prime * ctx


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, isqrt(n) + 1))
