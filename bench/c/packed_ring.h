/* SPDX-License-Identifier: MIT */
/*
 * The device's side of a packed virtqueue in C: the twin of src/virtio/packed/device_queue.ts. It checks what that one checks,
 * keeps the same positions to itself and publishes at the same points. The driver that fills the ring is here as well: each
 * buffer that is offered again is one store of flags, as in bench/offered_ring.ts.
 */
#ifndef PACKED_RING_H
#define PACKED_RING_H

#include "split_ring.h"

#define P_AVAIL (1u << 7)
#define P_USED (1u << 15)
#define P_ENABLE 0u
#define P_DISABLE 1u
#define P_DESCRIPTOR 2u
#define P_MARK 0x56500000u

struct packed_descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t id, flags;
};

struct packed_ring {
	struct space *space;
	uint32_t size, mask;
	struct packed_descriptor *ring;
	const uint32_t *driver_event;
	uint32_t *device_event;
	bool indirect;
	/* See device_queue.ts. */
	uint32_t base, published, next, in_flight, unshown;
	uint16_t ids[32768], counts[32768];
	uint32_t capacities[32768], written[32768];
};

static inline uint32_t packed_base(const struct packed_ring *r, uint32_t position)
{
	return (position & r->mask) | (position & r->size ? 0x8000 : 0);
}

static inline enum pop packed_next(struct packed_ring *r, struct chain *chain)
{
	chain->readable.count = chain->writable.count = 0;
	chain->readable.length = chain->writable.length = 0;
	struct list *list = &chain->readable;
	uint32_t base = r->base, taken = 0, free = r->size - ((base - r->published) & (2 * r->size - 1));
	uint16_t flags = __atomic_load_n(&r->ring[base & r->mask].flags, __ATOMIC_ACQUIRE);
	if ((flags & (P_AVAIL | P_USED)) != (base & r->size ? P_USED : P_AVAIL)) return EMPTY;
	uint64_t total = 0;
	uint16_t id;
	for (;;) {
		if (taken == free) fail("endless chain");
		const volatile struct packed_descriptor *shared = &r->ring[(base + taken) & r->mask];
		struct packed_descriptor d = { shared->address, shared->length, shared->id, flags };
		taken++;
		const volatile struct packed_descriptor *table = NULL;
		uint32_t left = 1;
		if (flags & INDIRECT) {
			if (!r->indirect || taken != 1 || (flags & NEXT)) fail("indirect where it may not be");
			if (d.length == 0 || d.length % sizeof d != 0) fail("indirect table's length");
			const struct window *w = find_window(r->space, d.address, d.length);
			if (w == NULL) fail("indirect table outside of memory");
			table = (const struct packed_descriptor *)(w->bytes + (d.address - w->at));
			left = d.length / sizeof d;
			if (left > r->size) fail("indirect table too long");
		}
		id = d.id;
		for (; left > 0; left--) {
			if (table != NULL) {
				d = (struct packed_descriptor){ table->address, table->length, 0, table->flags };
				table++;
			}
			if (d.flags & WRITE) list = &chain->writable;
			else if (list != &chain->readable) fail("readable after writable");
			if (d.length == 0) continue;
			total += d.length;
			if (total > UINT32_MAX) fail("chain too long");
			if (translate(r->space, d.address, d.length, list) == FULL) fail("too many segments");
		}
		if (!(flags & NEXT)) break;
		flags = ((const volatile struct packed_descriptor *)&r->ring[(base + taken) & r->mask])->flags;
	}
	chain->head = id;
	uint32_t number = r->next++ & r->mask;
	r->ids[number] = id;
	r->counts[number] = (uint16_t)taken;
	r->capacities[number] = (uint32_t)chain->writable.length;
	r->base = (base + taken) & (2 * r->size - 1);
	r->in_flight++;
	return CHAIN;
}

static inline void packed_complete(struct packed_ring *r, uint16_t id, uint32_t written)
{
	uint32_t oldest = (r->next - r->in_flight) & r->mask;
	if (r->in_flight == 0 || r->ids[oldest] != id) fail("not the oldest buffer");
	if (written > r->capacities[oldest]) fail("more written than there is");
	r->written[oldest] = written;
	r->unshown++;
	r->in_flight--;
}

static inline bool packed_publish(struct packed_ring *r)
{
	if (r->unshown == 0) return false;
	uint32_t first = r->next - r->in_flight - r->unshown, moved = 0;
	for (uint32_t i = 0; i < r->unshown; i++) moved += r->counts[(first + i) & r->mask];
	uint32_t position = r->published + moved, end = position & (2 * r->size - 1);
	for (uint32_t i = r->unshown; i-- > 0;) {
		uint32_t number = (first + i) & r->mask;
		position -= r->counts[number];
		volatile struct packed_descriptor *d = &r->ring[position & r->mask];
		uint16_t flags = (uint16_t)((position & r->size ? 0 : P_AVAIL | P_USED) | (r->written[number] ? WRITE : 0));
		d->length = r->written[number];
		d->id = r->ids[number];
		if (i > 0) d->flags = flags;
		else {
			((volatile uint32_t *)d)[1] = P_MARK | packed_base(r, end);
			__atomic_store_n(&r->ring[position & r->mask].flags, flags, __ATOMIC_RELEASE);
		}
	}
	r->published = end;
	r->unshown = 0;
	*(volatile uint32_t *)r->device_event = P_DISABLE << 16 | packed_base(r, end);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	uint32_t word = *(const volatile uint32_t *)r->driver_event, kind = word >> 16 & 3;
	if (kind != P_DESCRIPTOR) return kind == P_ENABLE;
	uint32_t event = (word & 0x7fff) + (word & 0x8000 ? 0 : r->size);
	return ((end - event - 1) & (2 * r->size - 1)) < moved;
}

struct packed_driver {
	struct space space;
	struct packed_ring ring;
	/* What it fills the ring with, and where it is. */
	struct packed_descriptor copy[256];
	uint32_t elements, position;
};

/* As make_driver of split_ring.h. */
static inline void make_packed_driver(struct packed_driver *d, uint32_t size, bool indirect,
	const uint32_t *lengths, uint32_t elements, uint64_t stride)
{
	uint64_t driver = page_up(16 * size), device = driver + PAGE, tables = device + PAGE;
	uint64_t data = page_up(tables + (indirect ? 16ull * elements * size : 0));
	uint64_t end = data + stride * size;
	uint8_t *memory = map_memory(end);
	memset(d, 0, sizeof *d);
	d->space.windows[0] = (struct window){ BUS, BUS + end, memory };
	d->space.count = 1;
	d->elements = indirect ? 1 : elements;
	for (uint32_t i = 0; i < size / d->elements; i++) {
		uint64_t table = tables + 16ull * elements * i, at = BUS + data + stride * i;
		struct packed_descriptor *target = indirect ? (struct packed_descriptor *)(memory + table) : d->copy + i * elements;
		for (uint32_t k = 0; k < elements; k++) {
			target[k] = (struct packed_descriptor){ at, lengths[k], (uint16_t)i, !indirect && k < elements - 1 ? NEXT : 0 };
			at += lengths[k];
		}
		if (indirect) d->copy[i] = (struct packed_descriptor){ BUS + table, 16 * elements, (uint16_t)i, INDIRECT };
	}
	*(uint32_t *)(memory + driver) = P_DISABLE << 16;
	d->ring.space = &d->space;
	d->ring.size = size;
	d->ring.mask = size - 1;
	d->ring.ring = (struct packed_descriptor *)memory;
	d->ring.driver_event = (uint32_t *)(memory + driver);
	d->ring.device_event = (uint32_t *)(memory + device);
	d->ring.indirect = indirect;
}

/* Writes descriptors, as a driver has to: the device has written over them. */
static inline void packed_offer(struct packed_driver *d, uint32_t count)
{
	uint32_t size = d->ring.size;
	for (uint32_t n = count * d->elements; n > 0; n--) {
		uint32_t slot = d->position & (size - 1);
		struct packed_descriptor copy = d->copy[slot];
		copy.flags |= d->position & size ? P_USED : P_AVAIL;
		d->ring.ring[slot] = copy;
		d->position = (d->position + 1) & (2 * size - 1);
	}
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

static inline void free_packed_driver(struct packed_driver *d)
{
	munmap(d->space.windows[0].bytes, d->space.windows[0].end - d->space.windows[0].at);
}

#endif
