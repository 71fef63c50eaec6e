/* SPDX-License-Identifier: MIT */
/*
 * The twin of confined mode's copies: memcpy of frames between a guest's segments and a pool, and nothing else.
 *
 *     copy IN LENGTH SEGMENT STRIDE COUNT BATCH
 *
 * IN is 1 from the guest to the pool, 0 back. COUNT frames of LENGTH bytes lie STRIDE bytes apart, each in
 * segments of at most SEGMENT bytes; a batch of them fills the pool from its beginning.
 */
#define _GNU_SOURCE
#include "twin.h"

struct frames {
	unsigned in, batch, count;
	size_t length, segment, stride;
	char *guest, *pool;
};

static NOT_INLINED void copy_frame(const struct frames *f, char *guest, char *pool)
{
	for (size_t done = 0; done < f->length; done += f->segment) {
		size_t left = f->length - done, part = left < f->segment ? left : f->segment;
		if (f->in) memcpy(pool + done, guest + done, part);
		else memcpy(guest + done, pool + done, part);
	}
}

static NOT_INLINED void batches(const struct frames *f, long operations)
{
	static unsigned next;
	size_t piece = (f->length + 63) & ~(size_t)63;
	for (long done = 0; done < operations; done += f->batch) {
		for (unsigned i = 0; i < f->batch; i++) {
			copy_frame(f, f->guest + f->stride * (next++ % f->count), f->pool + piece * i);
		}
	}
}

static void run(const char *name, const char *arguments, long operations, int rounds, double *ns)
{
	struct frames f;
	if (strcmp(name, "copy") != 0) fail("no such case");
	if (sscanf(arguments, "%u %zu %zu %zu %u %u", &f.in, &f.length, &f.segment, &f.stride, &f.count,
		   &f.batch) != 6) fail("bad arguments");
	size_t guest = f.stride * f.count, pool = (f.length + 63) * f.batch;
	f.guest = map_memory(guest);
	f.pool = map_memory(pool);
	batches(&f, operations);
	for (int round = 0; round < rounds; round++) {
		double start = now_ns();
		batches(&f, operations);
		ns[round] = (now_ns() - start) / (double)operations;
	}
	munmap(f.guest, guest);
	munmap(f.pool, pool);
}

int main(void)
{
	return serve(run);
}
