#include "bench/lib/capture_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cleanup.h"
#include "core/snapshot.h"

#define CAPTURE_VERSION 1
#define CAPTURE_BYTES_MAX (UINT64_C(1) << 40)
#define SUFFIX ".json"

static json_t *runs_to_json(const struct page_runs *runs)
{
	json_t *list = json_array();

	for (size_t i = 0; list && i < runs->count; i++)
		json_array_append_new(list, json_pack("[I,I]", (json_int_t)runs->run[i].first,
						      (json_int_t)runs->run[i].count));
	return list;
}

static int runs_from_json(const json_t *list, uint64_t pages, struct page_runs *runs)
{
	const json_t *item;
	size_t i;
	int r;

	json_array_foreach(list, i, item) {
		json_int_t first = json_integer_value(json_array_get(item, 0));
		json_int_t count = json_integer_value(json_array_get(item, 1));

		if (first < 0 || count <= 0 || (uint64_t)first > pages || (uint64_t)count > pages - (uint64_t)first)
			return -EBADMSG;
		r = page_runs_add(runs, (uint64_t)first, (uint64_t)count);
		if (r < 0)
			return r == -EINVAL ? -EBADMSG : r;
	}
	return 0;
}

int capture_info_save(const struct capture_info *info, const char *dir)
{
	char path[PATH_MAX], temp[PATH_MAX + 8];
	json_t *root;
	int r = 0;

	root = json_pack("{s:i, s:s, s:I, s:I, s:I, s:o, s:o}", "memvirt_capture", CAPTURE_VERSION, "name",
			 info->name, "bytes", (json_int_t)info->bytes, "zero_mapped_pages",
			 (json_int_t)info->zero_mapped_pages, "swapped_pages", (json_int_t)info->swapped_pages,
			 "present", runs_to_json(&info->present), "huge", runs_to_json(&info->huge));
	if (!root)
		return -ENOMEM;
	if (snprintf(path, sizeof(path), "%s/%s" SUFFIX, dir, info->name) >= (int)sizeof(path)) {
		json_decref(root);
		return -ENAMETOOLONG;
	}
	snprintf(temp, sizeof(temp), "%s.new", path);
	if (json_dump_file(root, temp, JSON_COMPACT) < 0 || rename(temp, path) < 0)
		r = errno ? -errno : -EIO;
	json_decref(root);
	return r;
}

static int info_from_json(json_t *root, struct capture_info *info)
{
	json_int_t bytes, zero_mapped, swapped;
	const char *name;
	json_t *present, *huge;
	int version, r;

	if (json_unpack(root, "{s:i, s:s, s:I, s:I, s:I, s:o, s:o}", "memvirt_capture", &version, "name", &name,
			"bytes", &bytes, "zero_mapped_pages", &zero_mapped, "swapped_pages", &swapped, "present",
			&present, "huge", &huge) < 0)
		return -EBADMSG;
	if (version != CAPTURE_VERSION || strlen(name) >= sizeof(info->name) || strchr(name, '/') || bytes <= 0 ||
	    (uint64_t)bytes > CAPTURE_BYTES_MAX || bytes % PAGE_BYTES != 0 || zero_mapped < 0 || swapped < 0)
		return -EBADMSG;
	snprintf(info->name, sizeof(info->name), "%s", name);
	info->bytes = (uint64_t)bytes;
	info->zero_mapped_pages = (uint64_t)zero_mapped;
	info->swapped_pages = (uint64_t)swapped;
	r = runs_from_json(present, info->bytes / PAGE_BYTES, &info->present);
	if (r == 0)
		r = runs_from_json(huge, info->bytes / PAGE_BYTES, &info->huge);
	return r;
}

int capture_info_load(const char *json_path, struct capture_info *ret_info)
{
	struct capture_info info = { 0 };
	json_error_t error;
	json_t *root;
	int r;

	errno = 0;
	root = json_load_file(json_path, 0, &error);
	if (!root)
		return errno == ENOENT || errno == EACCES ? -errno : -EBADMSG;
	r = info_from_json(root, &info);
	json_decref(root);
	if (r < 0) {
		capture_info_free(&info);
		return r;
	}
	*ret_info = info;
	return 0;
}

void capture_info_free(struct capture_info *info)
{
	page_runs_free(&info->present);
	page_runs_free(&info->huge);
}

int capture_open_raw(const char *json_path, const struct capture_info *info, int flags)
{
	size_t stem = strlen(json_path);
	char path[PATH_MAX];
	struct stat st;
	int fd;

	if (stem < strlen(SUFFIX) || strcmp(json_path + stem - strlen(SUFFIX), SUFFIX) != 0)
		return -EINVAL;
	stem -= strlen(SUFFIX);
	if (snprintf(path, sizeof(path), "%.*s.raw", (int)stem, json_path) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != info->bytes) {
		close(fd);
		return -EBADMSG;
	}
	return fd;
}

static int path_order(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

int capture_list(const char *dir, char *ret_paths[CAPTURES_MAX])
{
	auto_closedir DIR *d = opendir(dir);
	const struct dirent *entry;
	int count = 0;

	if (!d)
		return -errno;
	while ((entry = readdir(d)) && count < CAPTURES_MAX) {
		size_t len = strlen(entry->d_name);

		if (len <= strlen(SUFFIX) || strcmp(entry->d_name + len - strlen(SUFFIX), SUFFIX) != 0)
			continue;
		if (asprintf(&ret_paths[count], "%s/%s", dir, entry->d_name) < 0) {
			while (count > 0)
				free(ret_paths[--count]);
			return -ENOMEM;
		}
		count++;
	}
	qsort(ret_paths, (size_t)count, sizeof(*ret_paths), path_order);
	return count;
}
