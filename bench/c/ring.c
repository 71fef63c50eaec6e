/* SPDX-License-Identifier: MIT */
/*
 * The twin of the ring figures: pop, complete and one publish per batch, EVENT_IDX, with every check of
 * split_ring.h, without touching the buffers' bytes.
 *
 *     ring ELEMENTS INDIRECT BATCH     elements per buffer (2: a header of 12 bytes and 1500), 0 or 1
 *     packed ELEMENTS INDIRECT BATCH   the same of a packed ring (packed_ring.h), whose driver writes descriptors
 */
#define _GNU_SOURCE
#include "packed_ring.h"

#define SIZE 256

static struct driver driver;
static struct packed_driver packed;
static struct chain chain;

static NOT_INLINED void batches(long operations, uint16_t batch)
{
	for (long done = 0; done < operations; done += batch) {
		offer(&driver, batch);
		while (ring_next(&driver.ring, &chain) == CHAIN) ring_complete(&driver.ring, chain.head, 0);
		ring_publish(&driver.ring);
	}
}

static NOT_INLINED void packed_batches(long operations, uint32_t batch)
{
	for (long done = 0; done < operations; done += batch) {
		packed_offer(&packed, batch);
		while (packed_next(&packed.ring, &chain) == CHAIN) packed_complete(&packed.ring, chain.head, 0);
		packed_publish(&packed.ring);
	}
}

static void run(const char *name, const char *arguments, long operations, int rounds, double *ns)
{
	unsigned elements, indirect, batch;
	bool is_packed = strcmp(name, "packed") == 0;
	if (!is_packed && strcmp(name, "ring") != 0) fail("no such case");
	if (sscanf(arguments, "%u %u %u", &elements, &indirect, &batch) != 3) fail("bad arguments");
	const uint32_t one[] = { 1512 }, two[] = { 12, 1500 };
	if (elements != 1 && elements != 2) fail("elements");
	if (is_packed) {
		make_packed_driver(&packed, SIZE, indirect != 0, elements == 1 ? one : two, elements, 2048);
		packed_batches(operations, batch);
		for (int round = 0; round < rounds; round++) {
			double start = now_ns();
			packed_batches(operations, batch);
			ns[round] = (now_ns() - start) / (double)operations;
		}
		free_packed_driver(&packed);
		return;
	}
	make_driver(&driver, SIZE, indirect != 0, false, elements == 1 ? one : two, elements, 2048);
	batches(operations, (uint16_t)batch);
	for (int round = 0; round < rounds; round++) {
		double start = now_ns();
		batches(operations, (uint16_t)batch);
		ns[round] = (now_ns() - start) / (double)operations;
	}
	free_driver(&driver);
}

int main(void)
{
	return serve(run);
}
