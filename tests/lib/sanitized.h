/* tests/lib/sanitized.h - built with a sanitizer that has shadow memory and an allocator of its own? It makes mlock()
 * and mlockall() do nothing, and its mappings and heap come and go as they like. */
#ifndef TESTS_LIB_SANITIZED_H
#define TESTS_LIB_SANITIZED_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED 0
#endif

#endif
