/* SPDX-License-Identifier: MIT */
/*
 * For a guest: reads or writes a file or disk past the cache, one request at a time, and prints how long each took.
 *
 *     requests NAME read|write FILE SIZE COUNT
 *
 * prints `NAME: NS NS ...`, nanoseconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 6) return 2;
	int is_write = strcmp(argv[2], "write") == 0;
	size_t size = strtoul(argv[4], NULL, 0);
	long count = strtol(argv[5], NULL, 0);
	int fd = open(argv[3], (is_write ? O_RDWR | O_CREAT : O_RDONLY) | O_DIRECT, 0600);
	if (fd < 0) fail(argv[3]);
	void *buffer;
	if (posix_memalign(&buffer, 4096, size) != 0) fail("memory");
	memset(buffer, 'x', size);
	long long *took_ns = calloc(count, sizeof *took_ns);
	for (long i = 0; i < count; i++) {
		long long before_ns = now_ns();
		ssize_t done = is_write ? pwrite(fd, buffer, size, i * size) : pread(fd, buffer, size, i * size);
		if (done != (ssize_t)size) fail(argv[2]);
		took_ns[i] = now_ns() - before_ns;
	}
	printf("%s:", argv[1]);
	for (long i = 0; i < count; i++) printf(" %lld", took_ns[i]);
	printf("\n");
	return 0;
}
