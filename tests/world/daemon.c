#include "tests/world/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "tests/world/proc.h"

/* Merges whatever it can as soon as it sees it, and nothing but the test's VMs. */
static const char configuration[] =
	"[daemon]\ncontrol_socket = %1$s/control\nagent_socket = %1$s/agent\nstate_dir = %1$s/state\ntick = 100ms\n"
	"[vmm]\ndiscover = 100ms\n"
	"[scan]\ncpu_percent = 100%%\ninterval = 1s\nrest_permille = 1000\n"
	"[merge]\nengine = remap\ncpu_percent = 100%%\nmin_gain = 64KiB\n"
	"[vm *]\nmerge = off\n"
	"[vm chaos-a-*]\nmerge = on\ndomain = chaos-a\n"
	"[vm chaos-b-*]\nmerge = on\ndomain = chaos-b\n";

int daemon_open(struct chaos_daemon *d, const char *build, const char *dir)
{
	auto_fclose FILE *f = NULL;

	*d = (struct chaos_daemon){ .log_fd = -1 };
	snprintf(d->program, sizeof(d->program), "%.200s/memvirtd", build);
	snprintf(d->conf, sizeof(d->conf), "%.200s/memvirt.conf", dir);
	snprintf(d->policy, sizeof(d->policy), "%.200s/policy.d", dir);
	snprintf(d->log, sizeof(d->log), "%.200s/daemon.log", dir);
	f = fopen(d->conf, "we");
	if (!f || fprintf(f, configuration, dir) < 0 || mkdir(d->policy, 0700) < 0)
		return -errno;
	d->log_fd = open(d->log, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
	return d->log_fd < 0 ? -errno : 0;
}

void daemon_close(struct chaos_daemon *d)
{
	if (d->pid > 0)
		daemon_stop(d, SIGKILL);
	cleanup_close(&d->log_fd);
}

int daemon_start(struct chaos_daemon *d)
{
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		int fd = open(d->log, O_WRONLY | O_APPEND | O_CLOEXEC);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (fd >= 0 && dup2(fd, STDERR_FILENO) >= 0)
			execl(d->program, "memvirtd", "-v", "-c", d->conf, "-p", d->policy, NULL);
		_exit(127);
	}
	d->pid = pid;
	d->life = (struct daemon_life){ 0 };
	d->lives++;
	return 0;
}

/* ---- the log ---- */

static void round_merged(struct chaos_daemon *d, const char *line)
{
	unsigned long merged = 0, zero = 0;
	const char *p = strstr(line, " merged=");

	d->life.in_round = false;
	sscanf(p, " merged=%lu MiB zero=%lu", &merged, &zero);
	d->merged_mib += merged;
	if (merged == 0)
		return;
	d->rounds++;
	d->lives_merged += d->life.rounds_merged++ == 0;
}

static void line_take(struct chaos_daemon *d, const char *line)
{
	const char *p;
	unsigned frames;

	if (strstr(line, "pass start")) {
		d->life.passes++;
		d->life.in_pass = true;
	} else if (strstr(line, " pass vms=")) {
		d->life.in_pass = false;
	} else if (strstr(line, "remap start") && !strstr(line, "vms=0")) {
		d->life.rounds++;
		d->life.in_round = true;
	} else if (strstr(line, " remap domain=") && strstr(line, " merged=")) {
		round_merged(d, line);
	} else if (strstr(line, " remap domain=") && (strstr(line, " rests why") || strstr(line, " failed"))) {
		d->life.in_round = false;
	}
	d->adopted += strstr(line, "goes on with the frames") != NULL;
	p = strstr(line, " freed=");
	if (p && sscanf(p, " freed=%u", &frames) == 1)
		d->freed_frames += frames;
	if (strstr(line, " warning: ") || strstr(line, " error: ")) {
		d->warnings++;
		snprintf(d->warning, sizeof(d->warning), "%.250s", line);
	}
}

static void log_read(struct chaos_daemon *d)
{
	char text[8192];
	ssize_t n;

	while ((n = read(d->log_fd, text, sizeof(text))) > 0) {
		for (ssize_t i = 0; i < n; i++) {
			if (text[i] != '\n' && d->line_len < sizeof(d->line) - 1) {
				d->line[d->line_len++] = text[i];
				continue;
			}
			d->line[d->line_len] = '\0';
			d->line_len = 0;
			line_take(d, d->line);
		}
	}
}

bool daemon_watch(struct chaos_daemon *d)
{
	log_read(d);
	if (d->pid <= 0 || waitpid(d->pid, NULL, WNOHANG) == 0)
		return true;
	d->pid = 0;
	return false;
}

/* ---- its end ---- */

static int end_await(pid_t pid, int *ret_status)
{
	for (int i = 0; i < 6000; i++) {
		if (waitpid(pid, ret_status, WNOHANG) == pid)
			return 0;
		usleep(10000);
	}
	return -EIO;
}

int daemon_stop(struct chaos_daemon *d, int signal_number)
{
	pid_t pid = d->pid;
	int status = 0, r;

	if (pid <= 0)
		return -ESRCH;
	d->cpu_seconds += proc_cpu_seconds(pid);
	d->pid = 0;
	kill(pid, signal_number);
	r = end_await(pid, &status);
	if (r < 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return r;
	}
	log_read(d);
	if (signal_number == SIGKILL)
		return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? 0 : -EIO;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}
