/* SPDX-License-Identifier: MIT */
/*
 * The twin of src/device/net/net_device.ts: frames between a ring and a port, in batches. The port is
 * called through pointers, as a device calls one it does not know; it copies (memory to memory) or not.
 *
 *     transmit  COPY SIZE               pop -> port.send -> complete
 *     single    COPY SIZE               one buffer a frame: pop -> port.receive -> complete
 *     mergeable COPY SIZE               buffers in a row, as many a frame as it needs (MRG_RXBUF)
 *
 * SIZE is that of the frame without its virtio-net header of 12 bytes.
 */
#define _GNU_SOURCE
#include "split_ring.h"

#define HEADER 12
#define NUM_BUFFERS 10
#define BATCH 64
#define OFFERED 32
#define SEGMENT 4096u
#define SMALL 2048u
#define MAX_BUFFERS 256

static struct driver driver;
static struct chain chain;

/* --- the port ---------------------------------------------------------------------------------- */

static uint8_t *port_memory;
static uint64_t port_length;
static long port_left;

static NOT_INLINED bool send_nothing(const struct iovec *iov, unsigned count)
{
	(void)iov;
	return count > 0;
}

static NOT_INLINED bool send_copy(const struct iovec *iov, unsigned count)
{
	uint8_t *to = port_memory;
	for (unsigned i = 0; i < count; i++) {
		memcpy(to, iov[i].iov_base, iov[i].iov_len);
		to += iov[i].iov_len;
	}
	return true;
}

static NOT_INLINED uint64_t next_length(void)
{
	return port_left > 0 ? port_length : 0;
}

static NOT_INLINED uint64_t receive_nothing(const struct iovec *iov, unsigned count)
{
	(void)iov;
	(void)count;
	port_left--;
	return port_length;
}

static NOT_INLINED uint64_t receive_copy(const struct iovec *iov, unsigned count)
{
	uint64_t done = 0;
	for (unsigned i = 0; i < count && done < port_length; i++) {
		uint64_t part = iov[i].iov_len < port_length - done ? iov[i].iov_len : port_length - done;
		memcpy(iov[i].iov_base, port_memory + done, part);
		done += part;
	}
	port_left--;
	return done;
}

static struct {
	bool (*send)(const struct iovec *, unsigned);
	uint64_t (*next_length)(void);
	uint64_t (*receive)(const struct iovec *, unsigned);
} port;

/* --- transmit ---------------------------------------------------------------------------------- */

static NOT_INLINED void transmit(struct ring *r)
{
	for (int i = 0; i < BATCH; i++) {
		enum pop outcome = ring_next(r, &chain);
		if (outcome == EMPTY) {
			if (ring_want_kicks(r)) continue;
			return;
		}
		if (!port.send(chain.readable.iov, chain.readable.count)) {
			ring_rewind(r, 1);
			return;
		}
		ring_complete(r, chain.head, 0);
	}
}

/* --- receive ----------------------------------------------------------------------------------- */

static NOT_INLINED void receive_single(struct ring *r)
{
	for (int i = 0; i < BATCH; i++) {
		uint64_t wanted = port.next_length();
		if (wanted == 0) return;
		if (ring_next(r, &chain) == EMPTY) {
			if (ring_want_kicks(r)) continue;
			return;
		}
		if (chain.writable.length < wanted) fail("frame too long");
		uint64_t length = port.receive(chain.writable.iov, chain.writable.count);
		if (length < HEADER) fail("frame too short");
		ring_complete(r, chain.head, (uint32_t)length);
	}
}

/* The twin of chain_sequence.ts. */
static struct {
	uint16_t heads[MAX_BUFFERS];
	uint32_t capacities[MAX_BUFFERS];
	unsigned segments[MAX_BUFFERS + 1];
	unsigned first, count;
	uint64_t bytes;
} sequence;

static void sequence_clear(void)
{
	chain.readable.count = chain.writable.count = 0;
	chain.readable.length = chain.writable.length = 0;
	sequence.first = sequence.count = sequence.segments[0] = 0;
	sequence.bytes = 0;
}

static bool sequence_fill(struct ring *r, uint64_t wanted)
{
	while (sequence.bytes < wanted) {
		uint64_t before = chain.writable.length;
		enum pop outcome = sequence.count == MAX_BUFFERS ? FULL : ring_append(r, &chain);
		if (outcome == FULL && sequence.first > 0) {
			ring_rewind(r, (uint16_t)(sequence.count - sequence.first));
			sequence_clear();
			continue;
		}
		if (outcome != CHAIN) return false;
		if (chain.readable.count > 0) fail("readable descriptors");
		uint64_t capacity = chain.writable.length - before;
		sequence.heads[sequence.count] = chain.head;
		sequence.capacities[sequence.count++] = (uint32_t)capacity;
		sequence.segments[sequence.count] = chain.writable.count;
		sequence.bytes += capacity;
	}
	return true;
}

static unsigned sequence_buffers(uint64_t written)
{
	if (written == 0 || written > sequence.bytes) fail("written");
	unsigned buffer = sequence.first;
	for (int64_t rest = (int64_t)written; rest > 0; buffer++) rest -= sequence.capacities[buffer];
	return buffer - sequence.first;
}

static void sequence_complete(struct ring *r, uint64_t written)
{
	for (unsigned left = sequence_buffers(written); left > 0; left--) {
		uint32_t capacity = sequence.capacities[sequence.first];
		uint32_t part = written < capacity ? (uint32_t)written : capacity;
		ring_complete(r, sequence.heads[sequence.first], part);
		written -= part;
		sequence.bytes -= capacity;
		sequence.first++;
	}
}

/* Stores num_buffers, wherever its two bytes lie. */
static void set_u16(const struct iovec *iov, unsigned count, size_t at, uint16_t value)
{
	for (unsigned byte = 0; byte < 2; byte++) {
		size_t rest = at + byte;
		for (unsigned i = 0; i < count; i++) {
			if (rest < iov[i].iov_len) {
				((uint8_t *)iov[i].iov_base)[rest] = (uint8_t)(value >> (8 * byte));
				break;
			}
			rest -= iov[i].iov_len;
		}
	}
}

static NOT_INLINED void receive_mergeable(struct ring *r)
{
	for (int i = 0; i < BATCH; i++) {
		uint64_t wanted = port.next_length();
		if (wanted == 0) return;
		if (!sequence_fill(r, wanted)) {
			if (!ring_want_kicks(r)) return;
			continue;
		}
		unsigned first = sequence.segments[sequence.first];
		const struct iovec *iov = &chain.writable.iov[first];
		unsigned count = chain.writable.count - first;
		uint64_t length = port.receive(iov, count);
		if (length < HEADER) fail("frame too short");
		set_u16(iov, count, NUM_BUFFERS, (uint16_t)sequence_buffers(length));
		sequence_complete(r, length);
	}
}

/* --- rounds ------------------------------------------------------------------------------------ */

static void frames(void (*batch)(struct ring *), long count, unsigned buffers)
{
	for (long done = 0; done < count; done += OFFERED) {
		offer(&driver, (uint16_t)(OFFERED * buffers));
		port_left = OFFERED;
		batch(&driver.ring);
		ring_publish(&driver.ring);
	}
}

/* Cuts a buffer into segments as a guest's pages do. */
static uint32_t cut(uint32_t length, uint32_t *lengths)
{
	uint32_t count = 0;
	for (; length > 0; count++) {
		lengths[count] = length < SEGMENT ? length : SEGMENT;
		length -= lengths[count];
	}
	return count;
}

static void run(const char *name, const char *arguments, long operations, int rounds, double *ns)
{
	unsigned copy, size;
	if (sscanf(arguments, "%u %u", &copy, &size) != 2 || size > 65536) fail("bad arguments");
	port_length = HEADER + size;
	port.send = copy ? send_copy : send_nothing;
	port.next_length = next_length;
	port.receive = copy ? receive_copy : receive_nothing;
	void (*batch)(struct ring *);
	uint32_t lengths[32], elements, ring_size, buffers = 1;
	bool large = port_length > SMALL;
	if (strcmp(name, "mergeable") == 0) {
		batch = receive_mergeable;
		lengths[0] = large ? SEGMENT : SMALL;
		elements = 1;
		buffers = (uint32_t)((port_length + lengths[0] - 1) / lengths[0]);
		ring_size = large ? 1024 : 256;
	} else {
		bool is_transmit = strcmp(name, "transmit") == 0;
		if (!is_transmit && strcmp(name, "single") != 0) fail("no such case");
		batch = is_transmit ? transmit : receive_single;
		elements = cut(is_transmit || large ? (uint32_t)port_length : SMALL, lengths);
		ring_size = large ? 64 : 256;
	}
	uint64_t stride = 0;
	for (uint32_t i = 0; i < elements; i++) stride += lengths[i];
	stride = stride > SMALL ? page_up(stride) : SMALL;
	make_driver(&driver, ring_size, elements > 1, batch != transmit, lengths, elements, stride);
	driver.ring.indirect = true; /* negotiated, whether used or not */
	sequence_clear();
	frames(batch, operations, buffers);
	for (int round = 0; round < rounds; round++) {
		double start = now_ns();
		frames(batch, operations, buffers);
		ns[round] = (now_ns() - start) / (double)operations;
	}
	free_driver(&driver);
}

int main(void)
{
	port_memory = map_memory(1 << 17);
	return serve(run);
}
