/* SPDX-License-Identifier: MIT */
/*
 * The device's side of a split virtqueue in C: the twin of src/virtqueue/device_queue.ts, and of the parts
 * of src/memory that it stands on. It checks what that one checks, keeps the same indices to itself and
 * publishes at the same points; it only lacks the sentences for people: a bad ring ends the program.
 *
 * The driver that fills the rings is here as well; it is set-up and not measured.
 */
#ifndef SPLIT_RING_H
#define SPLIT_RING_H

#include <stdbool.h>
#include <sys/uio.h>

#include "twin.h"

#define NEXT 1
#define WRITE 2
#define INDIRECT 4
#define MAX_SEGMENTS 1024

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

struct window {
	uint64_t at, end;
	uint8_t *bytes;
};

struct space {
	struct window windows[8];
	unsigned count;
	/* The window found last. */
	const struct window *last;
};

struct list {
	struct iovec iov[MAX_SEGMENTS];
	unsigned count;
	uint64_t length;
};

struct chain {
	uint16_t head;
	struct list readable, writable;
};

struct ring {
	struct space *space;
	uint32_t size, mask;
	const struct descriptor *descriptors;
	const uint16_t *avail;
	uint16_t *used;
	uint32_t *used_elements;
	const uint16_t *used_event;
	uint16_t *avail_event;
	bool indirect;
	/* See device_queue.ts. */
	uint16_t base, left, in_flight, used_index, published;
	uint16_t heads[32768];
	uint32_t capacities[32768];
};

enum pop { EMPTY, CHAIN, FULL };

static inline const struct window *find_window(struct space *space, uint64_t address, uint64_t length)
{
	const struct window *last = space->last;
	if (last != NULL && address >= last->at && address <= last->end && length <= last->end - address) return last;
	for (unsigned i = 0; i < space->count; i++) {
		const struct window *w = &space->windows[i];
		if (address < w->at || address >= w->end) continue;
		space->last = w;
		return length <= w->end - address ? w : NULL;
	}
	return NULL;
}

static inline enum pop push_segment(struct list *list, void *base, uint64_t length)
{
	if (list->count == MAX_SEGMENTS) return FULL;
	list->iov[list->count].iov_base = base;
	list->iov[list->count].iov_len = length;
	list->count++;
	list->length += length;
	return CHAIN;
}

/* A range may go over several windows. */
static inline enum pop translate(struct space *space, uint64_t address, uint64_t length, struct list *into)
{
	while (length > 0) {
		const struct window *w = find_window(space, address, 1);
		if (w == NULL) fail("outside of memory");
		uint64_t part = w->end - address < length ? w->end - address : length;
		if (push_segment(into, w->bytes + (address - w->at), part) == FULL) return FULL;
		address += part;
		length -= part;
	}
	return CHAIN;
}

static inline unsigned ring_pending(struct ring *r)
{
	uint16_t available = __atomic_load_n(&r->avail[1], __ATOMIC_ACQUIRE);
	uint16_t left = (uint16_t)(available - r->base);
	uint16_t unpublished = (uint16_t)(r->used_index - r->published);
	if ((uint32_t)left + r->in_flight + unpublished > r->size) fail("available index too far ahead");
	return r->left = left;
}

/* Walks a chain; the table may change to an indirect one, once. */
static inline enum pop walk(struct ring *r, uint16_t head, struct chain *chain)
{
	const struct descriptor *table = r->descriptors;
	struct list *list = &chain->readable;
	uint64_t total = 0;
	uint32_t count = r->size, index = head;
	bool nested = false;
	for (uint32_t left = r->size; left > 0; left--) {
		/* One copy: what is checked is what is used. */
		const volatile struct descriptor *shared = &table[index];
		struct descriptor d = { shared->address, shared->length, shared->flags, shared->next };
		if (d.flags & INDIRECT) {
			if (!r->indirect || nested || (d.flags & NEXT)) fail("indirect where it may not be");
			if (d.length == 0 || d.length % sizeof d != 0) fail("indirect table's length");
			const struct window *w = find_window(r->space, d.address, d.length);
			if (w == NULL) fail("indirect table outside of memory");
			table = (const struct descriptor *)(w->bytes + (d.address - w->at));
			count = d.length / sizeof d;
			nested = true;
			index = 0;
			left++;
			continue;
		}
		if (d.flags & WRITE) list = &chain->writable;
		else if (list != &chain->readable) fail("readable after writable");
		if (d.length != 0) {
			total += d.length;
			if (total > UINT32_MAX) fail("chain too long");
			if (translate(r->space, d.address, d.length, list) == FULL) return FULL;
		}
		if (!(d.flags & NEXT)) return CHAIN;
		index = d.next;
		if (index >= count) fail("next outside of the table");
	}
	fail("endless chain");
	return EMPTY;
}

static inline enum pop ring_append(struct ring *r, struct chain *chain)
{
	if (r->left == 0 && ring_pending(r) == 0) return EMPTY;
	uint16_t slot = r->base & r->mask;
	uint16_t head = *(const volatile uint16_t *)&r->avail[2 + slot];
	if (head > r->mask) fail("head outside of the table");
	unsigned readable = chain->readable.count, writable = chain->writable.count;
	uint64_t readable_length = chain->readable.length, writable_length = chain->writable.length;
	if (walk(r, head, chain) == FULL) {
		if (readable == 0 && writable == 0) fail("too many segments");
		chain->readable.count = readable;
		chain->readable.length = readable_length;
		chain->writable.count = writable;
		chain->writable.length = writable_length;
		return FULL;
	}
	chain->head = head;
	r->heads[slot] = head;
	r->capacities[slot] = (uint32_t)(chain->writable.length - writable_length);
	r->base++;
	r->left--;
	r->in_flight++;
	return CHAIN;
}

static inline enum pop ring_next(struct ring *r, struct chain *chain)
{
	chain->readable.count = chain->writable.count = 0;
	chain->readable.length = chain->writable.length = 0;
	return ring_append(r, chain);
}

static inline void ring_complete(struct ring *r, uint16_t head, uint32_t written)
{
	uint16_t oldest = (uint16_t)(r->base - r->in_flight) & r->mask;
	if (r->in_flight == 0 || r->heads[oldest] != head) fail("not the oldest buffer");
	if (written > r->capacities[oldest]) fail("more written than there is");
	uint32_t *element = &r->used_elements[2 * (r->used_index & r->mask)];
	element[0] = head;
	element[1] = written;
	r->used_index++;
	r->in_flight--;
}

static inline void ring_rewind(struct ring *r, uint16_t count)
{
	if (count > r->in_flight) fail("rewind");
	r->in_flight -= count;
	r->base -= count;
	r->left += count;
}

static inline bool ring_publish(struct ring *r)
{
	uint16_t old = r->published, index = r->used_index;
	if (index == old) return false;
	__atomic_store_n(&r->used[1], index, __ATOMIC_RELEASE);
	r->published = index;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	uint16_t event = *(const volatile uint16_t *)r->used_event;
	return (uint16_t)(index - event - 1) < (uint16_t)(index - old);
}

static inline bool ring_want_kicks(struct ring *r)
{
	*(volatile uint16_t *)r->avail_event = (uint16_t)(r->base + r->left);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return ring_pending(r) != 0;
}

/* The driver's side, as tests/support/mock_driver.ts lays it out: bus addresses from BUS on. */
#define BUS 0x100000000ull
#define PAGE 4096ull

struct driver {
	struct space space;
	struct ring ring;
	/* The available index: all the driver does while it is measured is to move it. */
	uint16_t *available;
};

static inline uint64_t page_up(uint64_t n)
{
	return (n + PAGE - 1) & ~(PAGE - 1);
}

/*
 * Offers every buffer once: `buffers` of them, `stride` bytes apart, each of `lengths[0..elements)` bytes.
 * With `indirect` each has a table of its own and one entry of the ring's table.
 */
static inline void make_driver(struct driver *d, uint32_t size, bool indirect, bool writable,
	const uint32_t *lengths, uint32_t elements, uint64_t stride)
{
	uint64_t avail = page_up(16 * size), used = page_up(avail + 6 + 2 * size);
	uint64_t tables = page_up(used + 6 + 8 * size);
	uint64_t data = page_up(tables + (indirect ? 16ull * elements * size : 0));
	uint64_t end = data + stride * size;
	uint8_t *memory = map_memory(end);
	memset(d, 0, sizeof *d);
	d->space.windows[0] = (struct window){ BUS, BUS + end, memory };
	d->space.count = 1;
	struct descriptor *ring = (struct descriptor *)memory;
	uint16_t *heads = (uint16_t *)(memory + avail);
	for (uint32_t i = 0; i < size; i++) {
		uint32_t head = indirect ? i : i * elements & (size - 1);
		uint64_t table = tables + 16ull * elements * i, at = BUS + data + stride * i;
		struct descriptor *target = indirect ? (struct descriptor *)(memory + table) : ring + head;
		for (uint32_t k = 0; k < elements; k++) {
			uint16_t flags = (uint16_t)((k < elements - 1 ? NEXT : 0) | (writable ? WRITE : 0));
			target[k] = (struct descriptor){ at, lengths[k], flags, (uint16_t)(indirect ? k + 1 : head + k + 1) };
			at += lengths[k];
		}
		if (indirect) ring[i] = (struct descriptor){ BUS + table, 16 * elements, INDIRECT, 0 };
		heads[2 + i] = (uint16_t)head;
	}
	heads[2 + size] = 0x8000;
	d->available = &heads[1];
	d->ring.space = &d->space;
	d->ring.size = size;
	d->ring.mask = size - 1;
	d->ring.descriptors = ring;
	d->ring.avail = heads;
	d->ring.used = (uint16_t *)(memory + used);
	d->ring.used_elements = (uint32_t *)(memory + used + 4);
	d->ring.used_event = &heads[2 + size];
	d->ring.avail_event = (uint16_t *)(memory + used + 4 + 8ull * size);
	d->ring.indirect = indirect;
}

static inline void offer(struct driver *d, uint16_t count)
{
	__atomic_store_n(d->available, (uint16_t)(*d->available + count), __ATOMIC_RELEASE);
}

static inline void free_driver(struct driver *d)
{
	munmap(d->space.windows[0].bytes, d->space.windows[0].end - d->space.windows[0].at);
}

#endif
