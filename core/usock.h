/* core/usock.h - a listening Unix socket of a daemon. */
#ifndef CORE_USOCK_H
#define CORE_USOCK_H

/* Listens at path, not blocking, close-on-exec. type: SOCK_STREAM or SOCK_SEQPACKET. Its folder is made if it is
 * missing; a socket that nobody answers on is replaced. group: may connect beside root; empty: root only.
 * The descriptor; -EADDRINUSE (somebody answers, or it is no socket), -ENAMETOOLONG, -ENOENT (no such group), -errno. */
int usock_listen(const char *path, int type, const char *group, int backlog);

#endif
