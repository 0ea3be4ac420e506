/* The daemon behind a mount, from outside. */
#include "tools/cli_daemon.h"

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#ifndef MOBULA_SBINDIR
#define MOBULA_SBINDIR "/usr/local/sbin"
#endif

extern char **environ;

/* --- who it is --- */

static errint_t read_node(int nodes_fd, const char *node, struct cli_daemon *out)
{
    char path[300];
    cleanup_free char *text = NULL;
    snprintf(path, sizeof path, "%s/daemon", node);
    errint_t error = mob_read_file(nodes_fd, path, 65536, &text, NULL);
    if (error)
        return error;
    json_t *fields = cli_parse_key_values(text);
    out->server_pid = (pid_t)json_integer_value(json_object_get(fields, "pid"));
    out->keeper_pid = (pid_t)json_integer_value(json_object_get(fields, "keeper_pid"));
    snprintf(out->node, sizeof out->node, "%s", node);
    json_decref(fields);
    return out->keeper_pid > 1 ? 0 : -ENOENT;
}

errint_t cli_daemon_read(const char *mount_path, struct cli_daemon *out, struct mob_error *err)
{
    char path[PATH_MAX];
    *out = (struct cli_daemon){.keeper_pid = 0};
    if (snprintf(path, sizeof path, "%s/nodes", mount_path) >= (int)sizeof path)
        return mob_error_set(err, -ENAMETOOLONG, "%s: the path is too long", mount_path);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (!directory) {
        errint_t error = -errno;
        mob_cleanup_fd(&fd);
        return mob_error_set(err, error, "%s: %s", path, cli_errno_text(error));
    }
    errint_t error = -ENOENT;
    /* Only the node that serves this mount has a `daemon` file. */
    for (const struct dirent *entry; error == -ENOENT && (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            error = read_node(fd, entry->d_name, out);
    closedir(directory);
    return error ? mob_error_set(err, error, "%s: no node says which process it is", path) : 0;
}

pid_t cli_parent_of(pid_t pid)
{
    char path[64];
    cleanup_free char *text = NULL;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    if (mob_read_file(AT_FDCWD, path, 65536, &text, NULL))
        return 0;
    /* The name in brackets may have anything in it, also brackets. */
    const char *after_name = strrchr(text, ')');
    int parent = 0;
    if (!after_name || sscanf(after_name + 1, " %*c %d", &parent) != 1)
        return 0;
    return parent;
}

static bool names_mount(const char *argument, const char *mount_path)
{
    char real[PATH_MAX];
    if (!strcmp(argument, mount_path))
        return true;
    return *argument == '/' && realpath(argument, real) && !strcmp(real, mount_path);
}

bool cli_daemon_is_process(pid_t pid, const char *mount_path)
{
    enum { PROGRAM_WORDS = 4 }; /* "valgrind --tool=x mobulad" is one, too */
    char path[64];
    cleanup_free char *text = NULL;
    size_t bytes = 0;
    snprintf(path, sizeof path, "/proc/%d/cmdline", (int)pid);
    if (mob_read_file(AT_FDCWD, path, 1 << 20, &text, &bytes) || !bytes)
        return false;
    bool is_daemon = false, has_mount = !mount_path;
    int place = 0;
    for (const char *word = text; word < text + bytes; word += strlen(word) + 1, place++) {
        const char *slash = strrchr(word, '/');
        if (place < PROGRAM_WORDS && !strncmp(slash ? slash + 1 : word, "mobulad", 7))
            is_daemon = true;
        else if (!has_mount)
            has_mount = names_mount(word, mount_path);
    }
    return is_daemon && has_mount;
}

pid_t cli_daemon_search(const char *mount_path)
{
    pid_t found = 0;
    DIR *directory = opendir("/proc");
    if (!directory)
        return 0;
    for (const struct dirent *entry; !found && (entry = readdir(directory));) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid > 1 && cli_daemon_is_process(pid, mount_path) &&
            !cli_daemon_is_process(cli_parent_of(pid), mount_path))
            found = pid;
    }
    closedir(directory);
    return found;
}

/* --- programs and files --- */

static bool is_program(const char *path)
{
    struct stat st;
    return !stat(path, &st) && S_ISREG(st.st_mode) && !access(path, X_OK);
}

bool cli_find_program(const char *name, char path[PATH_MAX])
{
    const char *variable = getenv("PATH");
    char places[8192];
    snprintf(places, sizeof places,
             "%s:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
             variable ? variable : "");
    char *rest = NULL;
    for (char *place = strtok_r(places, ":", &rest); place; place = strtok_r(NULL, ":", &rest))
        if (*place == '/' && snprintf(path, PATH_MAX, "%s/%s", place, name) < PATH_MAX &&
            is_program(path))
            return true;
    return false;
}

bool cli_daemon_program(char path[PATH_MAX])
{
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0) {
        self[length] = '\0';
        *strrchr(self, '/') = '\0';
        if (snprintf(path, PATH_MAX, "%s/mobulad", self) < PATH_MAX && is_program(path))
            return true;
    }
    snprintf(path, PATH_MAX, "%s/mobulad", MOBULA_SBINDIR);
    return is_program(path) || cli_find_program("mobulad", path);
}

void cli_default_state(const char *name, char path[PATH_MAX])
{
    const char *state_home = getenv("XDG_STATE_HOME");
    const char *home = getenv("HOME");
    if (geteuid() == 0)
        snprintf(path, PATH_MAX, "/var/lib/mobula/%s", name);
    else if (state_home && *state_home == '/')
        snprintf(path, PATH_MAX, "%s/mobula/%s", state_home, name);
    else
        snprintf(path, PATH_MAX, "%s/.local/state/mobula/%s", home && *home == '/' ? home : "/tmp",
                 name);
}

/* --- unmounting --- */

static errint_t run_fusermount(const char *mount_path, struct mob_error *err)
{
    char program[PATH_MAX];
    if (!cli_find_program("fusermount3", program) && !cli_find_program("fusermount", program))
        return mob_error_set(err, -ENOENT, "fusermount3 is not installed (package fuse3)");
    char *arguments[] = {program,        (char[]){"-u"},     (char[]){"-z"},
                         (char[]){"--"}, (char *)mount_path, NULL};
    pid_t child;
    int status = 0;
    int error = posix_spawn(&child, program, NULL, NULL, arguments, environ);
    if (error)
        return mob_error_set(err, -error, "%s: %s", program, strerror(error));
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return mob_error_set(err, -errno, "%s: %s", program, strerror(errno));
    return status ? mob_error_set(err, -EPERM, "%s could not unmount %s", program, mount_path) : 0;
}

errint_t cli_unmount_lazily(const char *mount_path, struct mob_error *err)
{
    if (!umount2(mount_path, MNT_DETACH | UMOUNT_NOFOLLOW))
        return 0;
    if (errno == EINVAL || errno == ENOENT)
        return 0; /* it has gone by itself */
    if (errno != EPERM)
        return mob_error_set(err, -errno, "cannot unmount %s: %s", mount_path, strerror(errno));
    return run_fusermount(mount_path, err);
}
