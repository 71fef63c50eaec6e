/* SPDX-License-Identifier: MIT */
/*
 * The twin of src/bus/spsc_queue.ts between two threads, with the same layout: u32 head at 0, u32 tail at
 * 64, slots of 64 bytes from 128 on, indices 0..capacity-1, one slot always free. Each side keeps its own
 * index to itself, checks the other's and caches it, copies a slot out as a whole, and stores its index
 * per message.
 *
 *     round-trip     a message there and one back
 *     one-way B      messages there, the head published with every B-th
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdbool.h>

#include "twin.h"

#define SLOT_SIZE 64
#define CAPACITY 4096u
#define TAIL 64
#define SLOTS 128
#define QUEUE_SIZE (SLOTS + SLOT_SIZE * CAPACITY)

struct queue {
	uint8_t *bytes;
	/* This side's index, and the other's as last seen. */
	uint32_t own, other;
};

static uint32_t read_index(struct queue *q, unsigned offset)
{
	uint32_t index = __atomic_load_n((uint32_t *)(q->bytes + offset), __ATOMIC_ACQUIRE);
	return index < CAPACITY ? index : q->other;
}

static void write_index(struct queue *q, unsigned offset)
{
	__atomic_store_n((uint32_t *)(q->bytes + offset), q->own, __ATOMIC_RELEASE);
}

static uint32_t next(uint32_t index)
{
	return index + 1 == CAPACITY ? 0 : index + 1;
}

/* Writes a message into the next slot; it is published here or with a later one. */
static bool produce(struct queue *q, uint32_t value, bool publish)
{
	uint32_t after = next(q->own);
	if (after == q->other) {
		q->other = read_index(q, TAIL);
		if (after == q->other) return false;
	}
	memcpy(q->bytes + SLOTS + SLOT_SIZE * q->own, &value, sizeof value);
	q->own = after;
	if (publish) write_index(q, 0);
	return true;
}

static bool consume(struct queue *q, uint32_t slot[SLOT_SIZE / 4])
{
	if (q->own == q->other) {
		q->other = read_index(q, 0);
		if (q->own == q->other) return false;
	}
	memcpy(slot, q->bytes + SLOTS + SLOT_SIZE * q->own, SLOT_SIZE);
	q->own = next(q->own);
	write_index(q, TAIL);
	return true;
}

static uint8_t *there, *back;

struct order {
	long operations;
	int rounds;
	bool one_way;
};

/* The other thread: says that it is there, then echoes, or swallows and acknowledges each round. */
static void *other_thread(void *argument)
{
	const struct order *order = argument;
	struct queue in = { there, 0, 0 }, out = { back, 0, 0 };
	uint32_t slot[SLOT_SIZE / 4];
	while (!produce(&out, 0, true));
	for (int round = -1; round < order->rounds; round++) {
		for (long n = 0; n < order->operations; n++) {
			while (!consume(&in, slot));
			if (!order->one_way) while (!produce(&out, slot[0], true));
		}
		if (order->one_way) while (!produce(&out, 0, true));
	}
	return NULL;
}

static void run(const char *name, const char *arguments, long operations, int rounds, double *ns)
{
	long batch = strtol(arguments, NULL, 10);
	struct order order = { operations, rounds, strcmp(name, "one-way") == 0 };
	if (!order.one_way && strcmp(name, "round-trip") != 0) fail("no such case");
	memset(there, 0, QUEUE_SIZE);
	memset(back, 0, QUEUE_SIZE);
	struct queue out = { there, 0, 0 }, in = { back, 0, 0 };
	uint32_t slot[SLOT_SIZE / 4];
	pthread_t thread;
	if (pthread_create(&thread, NULL, other_thread, &order) != 0) fail("pthread_create");
	while (!consume(&in, slot));
	/* The first round is for warming up. */
	for (int round = -1; round < rounds; round++) {
		double start = now_ns();
		if (order.one_way) {
			for (long n = 1; n <= operations; n++)
				while (!produce(&out, (uint32_t)n, n % batch == 0 || n == operations));
			while (!consume(&in, slot));
		} else {
			for (long n = 0; n < operations; n++) {
				while (!produce(&out, (uint32_t)n, true));
				while (!consume(&in, slot));
			}
		}
		if (round >= 0) ns[round] = (now_ns() - start) / (double)operations;
	}
	pthread_join(thread, NULL);
}

int main(void)
{
	there = map_memory(QUEUE_SIZE);
	back = map_memory(QUEUE_SIZE);
	return serve(run);
}
