"""The compiled draw of evaluation chains, with NumPy's legacy generator: RandomState(seed) and its shuffle, bit for bit.

The published chains are defined by seven million draws from that generator, too many to ask NumPy for one by one.
Source: Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8(1), 1998, with the 2002 initialisation.
"""

from __future__ import annotations

import numba
import numpy as np

N, M = 624, 397
WORD = 0xFFFFFFFF


@numba.njit
def seeded(seed):
    """The generator of RandomState(seed) as int64 (625,): its 624 words, then the position in them."""
    state = np.empty(N + 1, np.int64)
    state[0] = seed
    for i in range(1, N):
        state[i] = (1812433253 * (state[i - 1] ^ (state[i - 1] >> 30)) + i) & WORD
    state[N] = N
    return state


@numba.njit
def next_word(state):
    """The next 32 random bits; advances `state`."""
    if state[N] == N:
        for i in range(N):
            y = (state[i] & 0x80000000) | (state[(i + 1) % N] & 0x7FFFFFFF)
            state[i] = state[(i + M) % N] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
        state[N] = 0
    y = state[state[N]]
    state[N] += 1
    y ^= y >> 11
    y ^= (y << 7) & 0x9D2C5680
    y ^= (y << 15) & 0xEFC60000
    return y ^ (y >> 18)


@numba.njit
def shuffle(state, values):
    """Shuffle `values` in place as RandomState.shuffle does; advances `state`."""
    for i in range(len(values) - 1, 0, -1):
        mask = 1
        while mask < i:
            mask = 2 * mask + 1
        j = next_word(state) & mask
        while j > i:
            j = next_word(state) & mask
        values[i], values[j] = values[j], values[i]


@numba.njit
def draw(seed, count, length, start, following, kinds):
    """The first `count` valid chains among RandomState(seed).choice(tasks, length, replace=False); int64 (count, length).

    following (conditions, tasks): number of the condition after a task, or -1 where the task is not allowed;
    kinds (tasks,): a chain is valid if every task is allowed in its turn and no two are of the same kind.
    """
    state, found, chains = seeded(seed), 0, np.empty((count, length), np.int64)
    order = np.empty(len(kinds), np.int64)
    while found < count:
        order[:] = np.arange(len(kinds))
        shuffle(state, order)
        condition, seen = start, 0
        for task in order[:length]:
            condition = following[condition, task]
            if condition < 0 or seen >> kinds[task] & 1:
                condition = -1
                break
            seen |= 1 << kinds[task]
        if condition >= 0:
            chains[found] = order[:length]
            found += 1
    return chains
