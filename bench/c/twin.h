/* SPDX-License-Identifier: MIT */
/*
 * How a C twin is driven by bench/harness.ts.
 *
 * A twin measures what a benchmark of vmsg measures, written in C as one would write it there. It reads
 * orders from standard input, one a line,
 *
 *     OPERATIONS ROUNDS CASE [ARGUMENTS of the case]
 *
 * and answers each with one line of ROUNDS numbers: nanoseconds per operation. Between orders it sleeps,
 * so that rounds of both programs can take turns on the same processors.
 */
#ifndef TWIN_H
#define TWIN_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MAX_ROUNDS 4096
#define NOT_INLINED __attribute__((noinline))

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* What must not happen ends the twin; harness.ts says so. */
static void fail(const char *why)
{
	fprintf(stderr, "C twin: %s\n", why);
	exit(1);
}

/* Zeroed memory, every page touched. */
static inline void *map_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) fail("mmap");
	memset(p, 0, size);
	return p;
}

/* Carries one order out: fills `ns` with `rounds` figures. `arguments` is what follows the case's name. */
typedef void run_case(const char *name, const char *arguments, long operations, int rounds, double *ns);

static int serve(run_case *run)
{
	static double ns[MAX_ROUNDS];
	char line[256], name[64];
	while (fgets(line, sizeof line, stdin) != NULL) {
		long operations;
		int rounds, end = 0;
		if (sscanf(line, "%ld %d %63s%n", &operations, &rounds, name, &end) != 3) fail("bad order");
		if (rounds < 1 || rounds > MAX_ROUNDS || operations < 1) fail("bad numbers");
		run(name, line + end, operations, rounds, ns);
		for (int i = 0; i < rounds; i++) printf("%.3f ", ns[i]);
		printf("\n");
		fflush(stdout);
	}
	return 0;
}

#endif
