/*
 * no-thp - run a command that gets no transparent huge pages.
 *
 * QEMU asks for huge pages for all guest memory and has no option against it. The process-wide switch is
 * inherited over exec and beats madvise. It also makes MADV_COLLAPSE from outside fail.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 2) {
		fputs("usage: no-thp COMMAND [ARGUMENT...]\n", stderr);
		return 2;
	}
	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) < 0) {
		fprintf(stderr, "no-thp: cannot disable huge pages: %s\n", strerror(errno));
		return 1;
	}
	execvp(argv[1], argv + 1);
	fprintf(stderr, "no-thp: %s: %s\n", argv[1], strerror(errno));
	return 127;
}
