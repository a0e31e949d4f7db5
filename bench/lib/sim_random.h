/* bench/lib/sim_random.h - the simulator's own random numbers (splitmix64): the same on every machine. */
#ifndef BENCH_SIM_RANDOM_H
#define BENCH_SIM_RANDOM_H

#include <stdint.h>

static inline uint64_t sim_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* From low (included) to high (not). */
static inline double sim_random_in(uint64_t *state, double low, double high)
{
	return low + (high - low) * ((double)(sim_random(state) >> 11) * 0x1p-53);
}

#endif
