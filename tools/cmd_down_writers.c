/* Who is still writing into staging/, found through /proc. */
#include "tools/cmd_down_writers.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/cli_mount.h"

uint64_t down_count_writers(const char *mount_path, const char *node)
{
    char path[PATH_MAX];
    cleanup_free char *text = NULL;
    if (snprintf(path, sizeof path, "%s/nodes/%s/objects", mount_path, node) >= (int)sizeof path ||
        mob_read_file(AT_FDCWD, path, 65536, &text, NULL))
        return 0;
    json_t *fields = cli_parse_key_values(text);
    json_int_t count = json_integer_value(json_object_get(fields, "staged"));
    json_decref(fields);
    return count > 0 ? (uint64_t)count : 0;
}

static bool is_writable(int pid, const char *fd)
{
    char path[300];
    cleanup_free char *text = NULL;
    snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", pid, fd);
    if (mob_read_file(AT_FDCWD, path, 65536, &text, NULL))
        return false;
    const char *flags = strstr(text, "flags:");
    return flags && (strtoul(flags + 6, NULL, 8) & O_ACCMODE) != O_RDONLY;
}

static void print_process(int pid, const char *file)
{
    char path[64];
    cleanup_free char *name = NULL;
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    if (mob_read_file(AT_FDCWD, path, 256, &name, NULL))
        return;
    name[strcspn(name, "\n")] = '\0';
    fprintf(stderr, "  %s by process %d (%s)\n", file, pid, name);
}

/* Looks through the descriptors of one process. Returns how many it printed. */
static unsigned print_writers_of(int pid, const char *prefix, size_t prefix_length)
{
    char path[300], target[PATH_MAX];
    unsigned found = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *directory = opendir(path);
    if (!directory)
        return 0;
    for (const struct dirent *entry; (entry = readdir(directory));) {
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);
        if (length <= 0)
            continue;
        target[length] = '\0';
        if (strncmp(target, prefix, prefix_length) || !is_writable(pid, entry->d_name))
            continue;
        print_process(pid, target + prefix_length - strlen("staging/"));
        found++;
    }
    closedir(directory);
    return found;
}

void down_print_writers(const char *mount_path)
{
    char prefix[PATH_MAX];
    unsigned found = 0;
    int length = snprintf(prefix, sizeof prefix, "%s/staging/", mount_path);
    DIR *directory = opendir("/proc");
    if (!directory || length >= (int)sizeof prefix) {
        if (directory)
            closedir(directory);
        return;
    }
    for (const struct dirent *entry; (entry = readdir(directory));) {
        int pid = (int)strtol(entry->d_name, NULL, 10);
        if (pid > 0)
            found += print_writers_of(pid, prefix, (size_t)length);
    }
    closedir(directory);
    if (!found)
        fprintf(stderr,
                "  (by processes that can't be seen from here, or mapped: "
                "'find %s/staging -type f' lists the files)\n",
                mount_path);
}
