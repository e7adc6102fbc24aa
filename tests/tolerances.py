"""Every tolerance of the house, named, with where it comes from. Tests import these and state none of their own.

LOGITS_* are absolute; STATE_* are relative to the largest element of the piece compared; the rest says what it is.
"""

from __future__ import annotations

# The oracle against the stored float64 logits: two float64 programs that sum in different orders (measured 1e-14).
ORACLE = 1e-9

# Stored v7 references used the constant 0.606531 for exp(-1/2) (measured 1.7e-6 on synth, 8e-9 on 7v0-834K).
ORACLE_V7_CONSTANT = 5e-6

# Any float64 back end against the oracle or the stored float64 values.
LOGITS_FLOAT64 = 1e-9
STATE_FLOAT64 = 1e-9

# float32 against float64, DESIGN 4: text, and random bytes.
LOGITS_TEXT = 1e-4
LOGITS_RANDOM = 3e-4
STATE = 1e-5

# 7v0-834K: package and float64 lie 1.2e-6 apart, and its LoRA parts move logits by as little as 1e-5 (fixtures README).
LOGITS_BARELY_TRAINED = 5e-6

# float32 against rwkv.cpp's stored logits after three tokens: at most 3.1e-6 was measured (fixtures README).
LOGITS_EXPECTED = 2e-5

# Mean loss over 4,096 tokens, nats per token (fixtures README).
LOSS = 1e-5

# Native float32 against NumPy float32; greedy tokens must be equal besides, DESIGN 4.
LOGITS_NATIVE = 1e-3

# Native over quantised weights against the reference over the same weights as float32: relative RMS over all logits.
# The weights are exact in every type, so what differs is the rounding of each linear's input. 8-bit codes: a number is
# off by up to 1/254 of the largest of its 32, for normal ones 2.35 sigma, so a linear's output by 0.53 % in RMS. bf16:
# off by up to 2**-8 of itself, 0.16 %. Two layers and a head of random weights give 1.4 times one linear's (measured
# 0.78 % and 0.19 %); a margin of 2.6.
LOGITS_CODES = 2e-2
LOGITS_BF16 = 5e-3

# Native against a NumPy interpreter that rounds inputs alike, relative RMS: float32 noise, but for inputs on the edge
# between two codes, each of which moves a row by 0.12 % (2.35/127 of one input in 256; measured up to 0.19 %).
LOGITS_SAME_CODES = 5e-3

# Chunked or T-parallel against step by step in float32, any split, DESIGN 4.
LOGITS_CHUNKED = 2e-4
STATE_CHUNKED = 1e-5

# Gradients: chunked against stepped, DESIGN 4, relative L2 per tensor; float64 against finite differences, relative.
GRADIENT_CHUNKED = 1e-5
GRADIENT_FINITE_DIFFERENCE = 1e-5

# Zeroing any one tensor of a committed fixture moves some logit by more than this: ten times the widest bar above it
# would have to pass unseen.
MATTERS = 1e-3

# A stored state is float32, rounded once (2**-24) after the package's own float32 arithmetic (measured 4e-6).
STATE_STORED = 1e-5

# First values of tensors against float64 formulas, absolute: float32 rounding of numbers up to 10. W W^T against g^2 I,
# relative to g^2: a float32 QR of up to 256 columns (measured 7e-7).
INIT_CURVE = 1e-6
INIT_ORTHOGONAL = 1e-5

# The native recurrences of training and their gradients against a float64 loop, relative L2 per tensor, issue 4's bar
# for chunked against stepped (measured 4e-7; v4 4e-6).
WKV_NATIVE = 1e-5

# The chunked recurrences, their gradients and other views of them against the stepped ones, all float64, relative L2
# per tensor (measured below 1e-13).
WKV_FLOAT64 = 1e-11

# Golden loss curves, nats: the trainer in float32 against a float64 run token by token, over 30 steps (measured 1e-6);
# and that float64 run again, whose losses are reported in float32.
GOLDEN = 2e-5
GOLDEN_ORACLE = 3e-6

# WKV over bf16 inputs against float32 over the same numbers, relative L2: what is lost is the rounding of the results
# to 8 bits, 2**-9 at most and 0.17 % in RMS.
WKV_BF16 = 3e-3

# A training step's gradients under bf16 autocast against float32, relative L2 per tensor: two layers of random weights,
# each product of 8-bit numbers (measured 0.9 % for v4 to 4 % for v7).
AUTOCAST = 5e-2

# The estimate of a training run, relative: activations against what autograd keeps of a real pass (fake tensors do the
# same; odd bytes of masks and indices differ), and the whole against a process's peak of resident memory.
ESTIMATE_ACTIVATIONS = 0.03
ESTIMATE_MEMORY = 0.15

# What a step of tuning holds at once, counted over fake tensors: against real tensors, relative (the same storages;
# what Python's collector has not seen may stay a moment), and against a process's own memory (measured 0.95 to 1.00).
PLAN_COUNT = 0.01
PLAN_MEMORY = 0.10

# A step whose batch is cut otherwise (micro batches, chunks of logits, recomputation) or shared by processes: losses
# and gradient norms of the first steps, relative; float32 sums in another order.
LOSS_SPLIT = 1e-5

# Eight steps of a tiny model in bf16 autocast against float32, nats per token.
LOSS_BF16 = 0.05

# The model after eight steps of two processes against one, relative L2 per tensor: AdamW divides by the size of the
# gradient, which makes float32 noise of small gradients as large as a step.
WEIGHTS_SPLIT = 1e-3

# The lab's metrics against closed forms or loops over single numbers, float64, relative: sums in another order.
METRIC = 1e-9

# The variance of some hundred or thousand deltas of white noise against its expectation, relative: 300 of them, each
# sharing a state with the next, scatter by 10 %; seeded.
WHITE_NOISE = 0.2

# The participation ratio of white noise against its expectation over T ticks and D numbers, relative: seeded.
PARTICIPATION = 0.05

# The lab's statistical laws hold within so many standard errors, computed beside each: 4 leaves 6 in 100,000 to chance,
# and the seeds are fixed.
SIGMAS = 4.0

# The lab's physics at T = 0 against closed forms, relative, after 10 units of time at dt = 0.01: BAOAB's error is
# (omega dt)^2/24 of a radian per radian (measured 1e-5).
PHYSICS_CLOSED = 5e-5

# How far BAOAB's energy may rise in a tick at T = 0, and swing over 10 units of time without friction, relative to
# where it began: it lies within (omega dt)^2/4 of one that never rises (measured no rise; a swing of 2.5e-5).
PHYSICS_ENERGY = 5e-5

# One tick of the lab's physics against a loop of plain numbers, and x on its sphere, v tangent to it, absolute: float64
# sums in another order.
PHYSICS_LOOP = 1e-12

# Slope of log error over log step: a method of order p shows p, but for what the next order adds (measured 0.05).
ORDER = 0.15

# Largest Lyapunov exponents in the literature, per unit of time, are quoted to three digits.
EXPONENT = 1e-3

# Sum of the three exponents of a flow of constant divergence, per unit of time: Runge-Kutta's error (measured 6e-5).
EXPONENT_SUM = 1e-3

# A decay's logarithm, taken from the weights and from a float64 run: -exp in float64 twice, relative.
LOG_DECAY = 1e-12

# Lyapunov exponents over a finite product, absolute, per tick: the frame's first turns count 1/T of a few logarithms.
EXPONENT_PRODUCT = 5e-2

# The autocorrelation time of 200,000 ticks of AR(1), relative: scatter of 2 % at phi = 0.9; seeded.
TAU = 0.08

# Fitted half-lives, amplitudes and floors of curves with 1 % noise, relative; seeded.
FITTED = 0.03

# Slopes from a sweep of steps with noise below and curvature above, relative: what the sweep itself allows.
SLOPE = 0.06

# Shares of 100 to 200 simulated intervals that cover the truth, absolute: 2 % of binomial scatter at 95 %, and a
# percentile interval over 20 to 40 prompts covers 2 % too rarely; seeded.
COVERAGE = 0.05

# Standard errors by moving blocks against AR(1)'s, relative: blocks of 40 ticks cut 11 % off, 40 runs scatter by 3 %.
STANDARD_ERROR = 0.2

# Lyapunov exponents by QR against the mean of the same float64 log-decays, nats a token: rounding of exp and log.
EXPONENT_EQUAL = 1e-9

# A merged adapter against the same beside its base, the bar for float32 logits; both are made from float32
# products here and run in float64 (measured 2e-6 on the fixtures, whose logits reach 8).
ADAPTER_MERGED = 1e-5

# nf4's levels in float64 against the digits of QLoRA's appendix, which are float32 arithmetic's (measured 1.2e-7).
NF4_LEVELS = 2e-7

# Backpropagation slice by slice against one pass, float64, relative L2 per tensor: sums in another order (measured
# 6e-15).
GRADIENT_SLICES = 1e-12

# An adapter beside a float32 base on the native core against the reference and against merged, the bar: the
# largest difference over the largest logit, float32 sums in another order (measured 2e-6 on the fixtures).
ADAPTER_BESIDE = 1e-5

# Preference losses and log-probabilities against closed forms and single sequences, float64, relative: rounding of exp
# and log, sums in another order.
PREFERENCE = 1e-9

# A model wholly in bf16 or float16 (rookery.hf) against float32 over the same numbers, relative L2 over the logits: two
# or three layers, each product rounded to 8 bits (measured 0.7 % for v4 to 1.4 % for v7; float16 0.2 %).
LOGITS_HALF = 3e-2

# --- evaluate ---
EVALUATE_LOGPROB = 2e-5  # nats a token: float32 exponentials summed in float64, against all in float64

# Log-probabilities of continuations and texts of up to a hundred tokens, nats, by evaluate's tree (exp in float32, sums
# in float64) against the server's and lm-eval's log-softmax of the same logits (measured 5e-8 for LAMBADA's words).
LOGPROB_SUM = 1e-5

# evaluate's n-gram probabilities by arrays against the formula by counting, float64, relative: a few operations.
NGRAM = 1e-12

# Bits per byte of a text, read with the tree's pieces cut otherwise, as is asked (native, reference: to the bit).
BITS_CHUNKED = 1e-4

# Bits per byte of a model before training against log2(V) tokens, relative: its first logits vary by 0.5 (the head's
# orthogonal rows), which costs half their variance in nats of ln V (measured 1.5 % for gosling's shapes).
BITS_UNTRAINED = 5e-2

# The same by transformers on torch, lm-eval's `hf`: float32 sums in another order (measured 3e-5 for texts of PIQA).
LOGPROB_HF = 3e-4

# Formulas as others print them, made right, against the reference; and bounds that theory has: float64, relative.
PRINTED = 1e-12

# Spreads of prompt forms: 20 spreads of dice against the mean by chance (one scatters by 0.05), and a bootstrap of 400
# questions against the binomial: its mean, absolute, and its deviation, relative (2,000 draws scatter by 2 %); seeded.
SPREADS = 0.03
SPREAD_MEAN = 0.005
SPREAD_DEVIATION = 0.1

# --- bench context ---
# Parameters of a peer against the number wanted, relative: the bar.
MATCHED = 0.03

# A peer's logits against transformers' model of the same weights, float32: sums in another order.
LOGITS_PEER = 2e-4

# Bytes that a peer's forward pass leaves for training, counted over fake tensors at 64 and 128 tokens and carried on
# to 192, against what autograd keeps of a real pass, relative: what was made on the way and is still referred to.
TRAINING_NEED = 0.15
