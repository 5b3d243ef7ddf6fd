/* SPDX-License-Identifier: MIT */
/*
 * Random numbers for tests: the same seed gives the same numbers, everywhere. The generator is
 * SplitMix64 (Steele, Lea, Flood 2014): the state is a counter, so any number is a good seed.
 */
#ifndef UBD_TESTS_RANDOM_H
#define UBD_TESTS_RANDOM_H

#include <stdint.h>

/* Numbers that differ in one bit become numbers that have nothing in common. */
static inline uint64_t random_mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static inline uint64_t random_next(uint64_t *state)
{
	return random_mix(*state += 0x9e3779b97f4a7c15ull);
}

/* 0 ... below - 1 */
static inline uint32_t random_below(uint64_t *state, uint32_t below)
{
	return (uint32_t)((random_next(state) >> 32) * below >> 32);
}

#endif
