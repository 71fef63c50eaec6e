/* SPDX-License-Identifier: MIT */
/*
 * Two processes that wake each other: the twin of a ping, and of a request and its answer.
 *
 *     eventfd INTERVAL HERE THERE      a wake-up each way, and nothing else
 *     socket INTERVAL HERE THERE       a message each way on the linux-user bus: into a queue, a byte on a
 *                                      socket; the peer reads the byte, copies the message out, answers likewise
 *     doorbell INTERVAL HERE THERE     the same with eventfds for bytes
 *
 * Both sides wait in epoll_wait, as an event loop does. Before each round the asking side sleeps for INTERVAL us;
 * a round is OPERATIONS round trips back to back. HERE and THERE are the processors of the two; -1: any.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "twin.h"

#define SLOT_SIZE 64
#define CAPACITY 4096u
#define TAIL 64
#define SLOTS 128
#define QUEUE_SIZE (SLOTS + SLOT_SIZE * CAPACITY)

struct end {
	/* Queues out and in; none for a bare wake-up. */
	uint8_t *out, *in;
	uint32_t head, tail;
	int epoll, ring, heard;
	bool by_socket;
};

static uint32_t *word(uint8_t *queue, unsigned offset)
{
	return (uint32_t *)(queue + offset);
}

static void say(struct end *e, uint32_t value)
{
	if (e->out != NULL) {
		uint32_t slot[SLOT_SIZE / 4] = { value };
		memcpy(e->out + SLOTS + SLOT_SIZE * e->head, slot, sizeof slot);
		e->head = (e->head + 1) % CAPACITY;
		__atomic_store_n(word(e->out, 0), e->head, __ATOMIC_RELEASE);
	}
	uint64_t one = 1;
	if (write(e->ring, &one, e->by_socket ? 1 : 8) < 0) fail("write");
}

/* False when there is nothing (more) to hear. */
static bool hear(struct end *e, uint32_t *value)
{
	if (e->in == NULL) return false;
	if (__atomic_load_n(word(e->in, 0), __ATOMIC_ACQUIRE) == e->tail) return false;
	uint32_t slot[SLOT_SIZE / 4];
	memcpy(slot, e->in + SLOTS + SLOT_SIZE * e->tail, sizeof slot);
	e->tail = (e->tail + 1) % CAPACITY;
	__atomic_store_n(word(e->in, TAIL), e->tail, __ATOMIC_RELEASE);
	*value = slot[0];
	return true;
}

/* Sleeps until the other side rings; false when it is gone. */
static bool wait_ring(struct end *e)
{
	struct epoll_event event;
	while (epoll_wait(e->epoll, &event, 1, -1) < 0)
		if (errno != EINTR) fail("epoll_wait");
	uint64_t bytes;
	return read(e->heard, &bytes, sizeof bytes) > 0;
}

static uint32_t wait_message(struct end *e)
{
	uint32_t value = 0;
	do {
		if (!wait_ring(e)) exit(0);
	} while (e->in != NULL && !hear(e, &value));
	return value;
}

static void watch(struct end *e)
{
	struct epoll_event event = { .events = EPOLLIN };
	e->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (e->epoll < 0 || epoll_ctl(e->epoll, EPOLL_CTL_ADD, e->heard, &event) < 0) fail("epoll");
}

static void pin(int processor)
{
	if (processor < 0) return;
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	if (sched_setaffinity(0, sizeof set, &set) < 0) fail("sched_setaffinity");
}

static void run(const char *name, const char *arguments, long operations, int rounds, double *ns)
{
	long interval;
	int here, there, fds[2][2];
	if (sscanf(arguments, "%ld %d %d", &interval, &here, &there) != 3) fail("bad arguments");
	bool by_socket = strcmp(name, "socket") == 0, bare = strcmp(name, "eventfd") == 0;
	if (!by_socket && !bare && strcmp(name, "doorbell") != 0) fail("no such case");
	uint8_t *queues = mmap(NULL, 2 * QUEUE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (queues == MAP_FAILED) fail("mmap");
	memset(queues, 0, 2 * QUEUE_SIZE);
	if (by_socket) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds[0]) < 0) fail("socketpair");
		fds[1][0] = fds[0][0];
		fds[1][1] = fds[0][1];
	} else {
		for (int i = 0; i < 2; i++) {
			fds[i][0] = fds[i][1] = eventfd(0, EFD_CLOEXEC);
			if (fds[i][0] < 0) fail("eventfd");
		}
	}
	uint8_t *to = bare ? NULL : queues, *from = bare ? NULL : queues + QUEUE_SIZE;
	/* An end rings fds[0] and hears fds[1], or the other way round; a socket's ends are two. */
	struct end one = { to, from, 0, 0, -1, fds[0][0], fds[1][0], by_socket };
	struct end two = { from, to, 0, 0, -1, fds[1][1], fds[0][1], by_socket };
	pid_t child = fork();
	if (child < 0) fail("fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pin(there);
		watch(&two);
		for (;;) say(&two, wait_message(&two));
	}
	pin(here);
	watch(&one);
	for (int round = -1; round < rounds; round++) {
		if (interval > 0) usleep((useconds_t)interval);
		double start = now_ns();
		for (long n = 0; n < operations; n++) {
			say(&one, (uint32_t)n);
			if (wait_message(&one) != (bare ? 0 : (uint32_t)n)) fail("another answer");
		}
		if (round >= 0) ns[round] = (now_ns() - start) / (double)operations;
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	close(one.epoll);
	close(fds[0][0]);
	close(by_socket ? fds[0][1] : fds[1][0]);
	munmap(queues, 2 * QUEUE_SIZE);
}

int main(void)
{
	return serve(run);
}
