"""The magic-prime order: RWKV-LM's primes, each window once, and batches that depend on the step alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery import errors
from rookery.train import order

MINIPILE = 1_498_226_207


@pytest.mark.parametrize(("ctx", "prime"), [(512, 2_926_181), (4096, 365_759)])
def test_primes_of_minipile(ctx: int, prime: int) -> None:
    assert order.magic_prime(MINIPILE // ctx) == order.prime_for(MINIPILE, ctx) == prime


def test_the_prime_is_the_largest_below_the_slots() -> None:
    primes = [n for n in range(2, 1500) if all(n % d for d in range(2, n)) and n % 3 == 2]
    for low, high in pairwise(primes):
        for slots in range(low + 1, high + 1):
            assert order.magic_prime(slots) == low
            assert slots < 228 or low >= 0.9 * slots


@given(slots=st.integers(3, 600), ctx=st.integers(1, 5000), epoch=st.integers(0, 10**6))
def test_an_epoch_reads_each_window_once(slots: int, ctx: int, epoch: int) -> None:
    prime = order.magic_prime(slots)
    begin = 1 + epoch * prime
    starts = sorted(order.start(sample, prime, ctx) for sample in range(begin, begin + prime))
    assert starts == list(range(0, prime * ctx, ctx))
    assert starts[-1] + ctx + 1 <= slots * ctx  # the target of the last token is there too


def test_starts_by_hand() -> None:
    # 11 windows or more but fewer than 18: p = 11, int(11 * 0.618) = 6, and 6 * ii^3 mod 11.
    assert order.magic_prime(13) == 11
    assert [order.start(sample, 11, 512) // 512 for sample in range(1, 12)] == [6, 4, 8, 10, 2, 9, 1, 3, 7, 5, 0]


def test_large_samples_are_exact() -> None:
    prime, sample = 2_926_181, 10**9 + 7  # sample**3 is far beyond 64 bits
    factor = int(prime * 0.6180339887498949)
    assert order.start(sample, prime, 512) == factor * pow(sample, 3, prime) % prime * 512


@given(step=st.integers(0, 10**6), world=st.sampled_from([1, 2, 3, 4, 6, 8]), micro=st.sampled_from([1, 2, 4]))
def test_the_batch_of_a_step_does_not_depend_on_how_it_is_shared(step: int, world: int, micro: int) -> None:
    batch = 48
    shares = [order.samples(step, batch, rank, world) for rank in range(world)]
    # RWKV-LM: sample ii = 1 + epoch * 40320 + idx * world + rank, for the share's idx in micro batches
    for rank, share in enumerate(shares):
        first = step * len(share)
        for at in range(0, len(share), micro):
            idx = range(first + at, first + min(at + micro, len(share)))
            assert list(share[at : at + micro]) == [1 + i * world + rank for i in idx]
    assert sorted(i for share in shares for i in share) == list(range(1 + step * batch, 1 + (step + 1) * batch))


def test_too_small() -> None:
    with pytest.raises(errors.InputError, match=r"1500 tokens .* ctx_len 512, which wants 1536: ctx_len 500 would fit"):
        order.prime_for(1500, 512)
    assert order.prime_for(1536, 512) == order.prime_for(1500, 500) == 2
    with pytest.raises(errors.InputError, match="give more data"):
        order.prime_for(2, 512)
    with pytest.raises(errors.InputError, match="fill 2 windows"):
        order.magic_prime(2)
    with pytest.raises(errors.InputError, match="10 cannot be shared by 4"):
        order.samples(0, 10, 0, 4)
