/* Transport, the keeper's part: mounting, unmounting, and answering when nobody serves. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/base/util.h"
#include "fs/transport_internal.h"

extern char **environ;

/* The last mount of this process; servers inherit it by fork. It serves nothing but finding one's
 * way back to the mount (mount_path()), which the connection itself does not tell. */
static struct {
    int fd;
    char path[PATH_MAX];
} last_mount = {.fd = -1};

const char *mount_path(int fd)
{
    return fd >= 0 && last_mount.fd == fd ? last_mount.path : NULL;
}

static void note_mount(int fd, const char *path)
{
    size_t bytes = strlen(path) + 1;
    if (bytes > sizeof(last_mount.path))
        return;
    memcpy(last_mount.path, path, bytes);
    last_mount.fd = fd;
}

/* --- by mount(2) --- */

static errint_t check_mountpoint(const char *mountpoint, struct mob_error *err)
{
    struct stat st;
    if (mountpoint[0] != '/')
        return mob_error_set(err, -EINVAL, "the mountpoint %s is not an absolute path", mountpoint);
    if (stat(mountpoint, &st) < 0) {
        if (errno == ENOTCONN)
            return mob_error_set(err, -ENOTCONN,
                                 "%s has a dead mount: remove it with fusermount3 -u %s",
                                 mountpoint, mountpoint);
        if (errno == ENOENT)
            return mob_error_set(err, -ENOENT, "the mountpoint %s does not exist: make it first",
                                 mountpoint);
        return mob_error_set(err, -errno, "cannot use %s as the mountpoint: %s", mountpoint,
                             strerror(errno));
    }
    if (!S_ISDIR(st.st_mode))
        return mob_error_set(err, -ENOTDIR, "the mountpoint %s is not a directory", mountpoint);
    return 0;
}

static errint_t device_error(int number, struct mob_error *err)
{
    if (number == ENOENT || number == ENODEV || number == ENXIO)
        return mob_error_set(err, -number,
                             "there is no /dev/fuse: load the module (modprobe fuse), or give the "
                             "container the device (--device /dev/fuse)");
    if (number == EACCES || number == EPERM)
        return mob_error_set(err, -number,
                             "/dev/fuse may not be opened: check its permissions, or the "
                             "container's device rules");
    return mob_error_set(err, -number, "cannot open /dev/fuse: %s", strerror(number));
}

static errint_t mount_as_root(const struct mount_options *options, int *out, struct mob_error *err)
{
    cleanup_fd int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return device_error(errno, err);
    /* The filesystem relies on mode bits, which the kernel checks with default_permissions. */
    char data[160];
    snprintf(data, sizeof(data),
             "fd=%d,rootmode=40000,user_id=%u,group_id=%u,max_read=%u,default_permissions%s", fd,
             getuid(), getgid(), SESSION_PAYLOAD_BYTES, options->allow_other ? ",allow_other" : "");
    if (mount(options->source, options->mountpoint, "fuse.mobula", MS_NOSUID | MS_NODEV, data) <
        0) {
        if (errno == EPERM)
            return mob_error_set(err, -EPERM,
                                 "mount(2) is not permitted here: a container needs "
                                 "--cap-add SYS_ADMIN");
        if (errno == EBUSY)
            return mob_error_set(err, -EBUSY, "the mountpoint %s is in use", options->mountpoint);
        return mob_error_set(err, -errno, "cannot mount on %s: %s", options->mountpoint,
                             strerror(errno));
    }
    *out = steal_fd(&fd);
    return 0;
}

/* --- by fusermount3 --- */

/* The descriptor that fusermount3 sends, or -1. */
static int receive_fd(int socket)
{
    char byte;
    struct iovec iov = {&byte, 1};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    ssize_t got;
    do
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    const struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof(int)))
        return -1;
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    return fd;
}

static errint_t spawn_fusermount(char *const arguments[], char **environment, int keep_fd,
                                 pid_t *child, struct mob_error *err)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    if (keep_fd >= 0) /* onto itself: takes its close-on-exec away in the child */
        posix_spawn_file_actions_adddup2(&actions, keep_fd, keep_fd);
    int failed = posix_spawnp(child, "fusermount3", &actions, NULL, arguments, environment);
    posix_spawn_file_actions_destroy(&actions);
    if (failed == ENOENT)
        return mob_error_set(err, -ENOENT,
                             "fusermount3 is missing: install the package fuse3, or be root");
    if (failed)
        return mob_error_set(err, -failed, "cannot run fusermount3: %s", strerror(failed));
    return 0;
}

/* 0, or what it exited with; -1 for a signal. */
static int wait_for_child(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The environment with _FUSE_COMMFD, in one allocation; its first string is `variable`. */
static char **environment_with(char *variable)
{
    size_t count = 0;
    while (environ && environ[count])
        count++;
    char **copy = calloc(count + 2, sizeof(*copy));
    if (!copy)
        return NULL;
    copy[0] = variable;
    for (size_t i = 0; i < count; i++)
        copy[i + 1] = environ[i];
    return copy;
}

static errint_t mount_as_user(const struct mount_options *options, int *out, struct mob_error *err)
{
    /* fusermount3 opens it as the user. */
    if (access("/dev/fuse", R_OK | W_OK) < 0)
        return device_error(errno, err);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return mob_error_set(err, -errno, "socketpair: %s", strerror(errno));
    cleanup_fd int ours = pair[0];
    cleanup_fd int theirs = pair[1];

    char variable[32];
    char mount_flags[256];
    snprintf(variable, sizeof(variable), "_FUSE_COMMFD=%d", theirs);
    snprintf(mount_flags, sizeof(mount_flags),
             "nosuid,nodev,fsname=%s,subtype=mobula,max_read=%u,default_permissions%s",
             options->source, SESSION_PAYLOAD_BYTES, options->allow_other ? ",allow_other" : "");
    char *arguments[] = {"fusermount3", "-o", mount_flags, "--", (char *)options->mountpoint, NULL};
    cleanup_free char **environment = environment_with(variable);
    if (!environment)
        return mob_error_set(err, -ENOMEM, "out of memory");
    pid_t child;
    errint_t failed = spawn_fusermount(arguments, environment, theirs, &child, err);
    if (failed)
        return failed;
    close(steal_fd(&theirs));
    int fd = receive_fd(ours);
    int status = wait_for_child(child);
    if (fd < 0 || status != 0) {
        if (fd >= 0)
            close(fd);
        return mob_error_set(err, -EPERM,
                             "fusermount3 could not mount %s (see its message): the directory must "
                             "be yours%s",
                             options->mountpoint,
                             options->allow_other ? ", and allow_other needs user_allow_other in "
                                                    "/etc/fuse.conf"
                                                  : "");
    }
    *out = fd;
    return 0;
}

errint_t transport_mount(const struct mount_options *options, int *fd, struct mob_error *err)
{
    *fd = -1;
    errint_t failed = check_mountpoint(options->mountpoint, err);
    if (failed)
        return failed;
    failed = geteuid() == 0 ? mount_as_root(options, fd, err) : mount_as_user(options, fd, err);
    if (!failed)
        note_mount(*fd, options->mountpoint);
    return failed;
}

errint_t transport_unmount(const char *mountpoint, bool lazy, struct mob_error *err)
{
    if (geteuid() == 0) {
        if (umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
            return 0;
        if (errno == EBUSY)
            return mob_error_set(err, -EBUSY, "%s is in use: see fuser -vm %s", mountpoint,
                                 mountpoint);
        if (errno == EINVAL)
            return mob_error_set(err, -EINVAL, "%s is not mounted", mountpoint);
        return mob_error_set(err, -errno, "cannot unmount %s: %s", mountpoint, strerror(errno));
    }
    char *eager_arguments[] = {"fusermount3", "-u", "--", (char *)mountpoint, NULL};
    char *lazy_arguments[] = {"fusermount3", "-u", "-z", "--", (char *)mountpoint, NULL};
    pid_t child;
    errint_t failed =
        spawn_fusermount(lazy ? lazy_arguments : eager_arguments, environ, -1, &child, err);
    if (failed)
        return failed;
    if (wait_for_child(child) != 0)
        return mob_error_set(err, -EBUSY,
                             "fusermount3 could not unmount %s: it is in use or not mounted",
                             mountpoint);
    return 0;
}

/* --- refusing --- */

errint_t transport_refuse_session(int fd, struct session *session, struct mob_error *err)
{
    static const struct fuse_lowlevel_ops no_ops;
    struct transport_options options = {.fd = fd, .session = session};
    struct transport *transport;
    errint_t failed = transport_create(&options, &no_ops, sizeof(no_ops), NULL, &transport, err);
    if (failed)
        return failed;
    transport->refuse = true;
    failed = transport_serve(transport, err);
    transport_destroy(transport);
    return failed;
}
