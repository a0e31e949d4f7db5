/* core/cleanup.h - scope-bound release of locals: auto_free, auto_close, auto_fclose, auto_closedir. */
#ifndef CORE_CLEANUP_H
#define CORE_CLEANUP_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_close(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_fclose(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void cleanup_closedir(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define auto_free __attribute__((cleanup(cleanup_free)))
#define auto_close __attribute__((cleanup(cleanup_close)))
#define auto_fclose __attribute__((cleanup(cleanup_fclose)))
#define auto_closedir __attribute__((cleanup(cleanup_closedir)))

/* Hands a guarded pointer or descriptor to a new owner; the guard then does nothing. */
#define take_ptr(p)                                 \
	__extension__({                             \
		__typeof__(p) taken_ptr_ = (p);     \
		(p) = NULL;                         \
		taken_ptr_;                         \
	})
#define take_fd(fd)                     \
	__extension__({                 \
		int taken_fd_ = (fd);   \
		(fd) = -1;              \
		taken_fd_;              \
	})

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#endif
