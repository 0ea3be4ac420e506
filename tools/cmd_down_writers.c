/* Who is still writing into staging/, found through /proc; and what is closed, but could not be
 * committed, which the mount says. */
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

/* Counts what is in the directory and below it; takes the descriptor. `path` is where it is. */
static uint64_t count_stuck(int fd, const char *path, bool print)
{
    uint64_t count = 0;
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) {
        mob_cleanup_fd(&fd);
        return 0;
    }
    for (const struct dirent *entry; (entry = readdir(directory));) {
        char inner[PATH_MAX];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
            snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) >= (int)sizeof inner)
            continue;
        const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
        if (entry->d_type == DT_DIR)
            count += count_stuck(openat(dirfd(directory), entry->d_name, flags), inner, print);
        cleanup_free char *reason =
            entry->d_type == DT_REG ? cli_xattr_at(dirfd(directory), entry->d_name, "error") : NULL;
        count += reason != NULL;
        if (reason && print)
            fprintf(stderr, "  %s: %s\n", inner, reason);
    }
    closedir(directory);
    return count;
}

uint64_t down_count_stuck(const char *mount_path, bool print)
{
    uint64_t count = 0;
    cleanup_fd int mount = open(mount_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (const char *const *root = (const char *const[]){"staging", "run", NULL}; *root; root++)
        count +=
            count_stuck(openat(mount, *root, O_RDONLY | O_DIRECTORY | O_CLOEXEC), *root, print);
    return count;
}
