/* mobula doctor, the kernel's side: version, FUSE, FUSE over io_uring, passthrough. */
#include "tools/cmd_doctor.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

bool doctor_kernel_is(int major, int minor)
{
    struct utsname name;
    int has_major = 0, has_minor = 0;
    if (uname(&name) || sscanf(name.release, "%d.%d", &has_major, &has_minor) != 2)
        return false;
    return has_major > major || (has_major == major && has_minor >= minor);
}

bool doctor_is_admin(void)
{
    cleanup_free char *text = NULL;
    if (mob_read_file(AT_FDCWD, "/proc/self/status", 65536, &text, NULL))
        return geteuid() == 0;
    const char *line = strstr(text, "CapEff:");
    return line && (strtoull(line + 7, NULL, 16) >> CAP_SYS_ADMIN & 1);
}

static void check_version(struct doctor *doctor)
{
    struct utsname name;
    if (uname(&name))
        return;
    doctor_find(doctor, "kernel", doctor_kernel_is(5, 15) ? DOCTOR_OK : DOCTOR_FAIL,
                "mobula needs Linux 5.15 or later", "Linux %s", name.release);
}

static void check_fuse(struct doctor *doctor)
{
    cleanup_free char *filesystems = NULL;
    bool listed = !mob_read_file(AT_FDCWD, "/proc/filesystems", 1 << 20, &filesystems, NULL) &&
                  strstr(filesystems, "\tfuse\n");
    doctor_find(doctor, "fuse", listed ? DOCTOR_OK : DOCTOR_FAIL,
                "'modprobe fuse' as root, on the host where this is a container",
                listed ? "the kernel has FUSE"
                       : "the kernel has no FUSE, or its module is not loaded");
    cleanup_fd int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        doctor_find(doctor, "/dev/fuse", DOCTOR_OK, NULL, "can be opened");
    else
        doctor_find(doctor, "/dev/fuse", DOCTOR_FAIL,
                    errno == ENOENT
                        ? "'mknod /dev/fuse c 10 229; chmod 666 /dev/fuse', or in a "
                          "container: docker run --device /dev/fuse --cap-add SYS_ADMIN"
                        : "'chmod 666 /dev/fuse', or in a container: docker run --device "
                          "/dev/fuse --cap-add SYS_ADMIN",
                    "%s", strerror(errno));
}

/* 0, or the errno of io_uring_setup(2). */
static int try_ring(void)
{
    struct io_uring_params parameters = {0};
    long fd = syscall(SYS_io_uring_setup, 2, &parameters);
    if (fd < 0)
        return errno;
    close((int)fd);
    return 0;
}

static bool check_ring(struct doctor *doctor)
{
    int error = try_ring();
    doctor_find(doctor, "io_uring", error ? DOCTOR_WARN : DOCTOR_OK,
                error == EPERM ? "'sysctl kernel.io_uring_disabled=0', or in a container a seccomp "
                                 "profile that allows io_uring"
                               : "a kernel with CONFIG_IO_URING",
                "%s%s", error ? "can't be used, so requests go through /dev/fuse: " : "can be used",
                error ? strerror(error) : "");
    return !error;
}

static void check_fuse_ring(struct doctor *doctor, bool has_ring)
{
    static const char parameter[] = "/sys/module/fuse/parameters/enable_uring";
    static const char mend[] =
        "as root: 'echo Y > /sys/module/fuse/parameters/enable_uring'; to keep it: 'echo options "
        "fuse enable_uring=1 > /etc/modprobe.d/fuse.conf'";
    cleanup_free char *value = NULL;
    if (!doctor_kernel_is(6, 14) || mob_read_file(AT_FDCWD, parameter, 64, &value, NULL)) {
        doctor_find(doctor, "fuse io_uring", DOCTOR_WARN,
                    "Linux 6.14 or later with CONFIG_FUSE_IO_URING makes small objects faster",
                    "this kernel has no FUSE over io_uring: requests go through /dev/fuse");
        return;
    }
    bool on = *value == 'Y' || *value == '1';
    if (on && has_ring)
        doctor_find(doctor, "fuse io_uring", DOCTOR_OK, NULL, "is on");
    else if (on)
        doctor_find(doctor, "fuse io_uring", DOCTOR_WARN, "see io_uring above",
                    "is on, but io_uring can't be used: requests go through /dev/fuse");
    else
        doctor_find(doctor, "fuse io_uring", DOCTOR_WARN, mend,
                    "is off (enable_uring): requests go through /dev/fuse");
}

static void check_passthrough(struct doctor *doctor)
{
    if (!doctor_kernel_is(6, 9))
        doctor_find(doctor, "passthrough", DOCTOR_WARN,
                    "Linux 6.9 or later lets large objects be read at memory speed",
                    "this kernel has none: the daemon serves every read and write");
    else if (!doctor_is_admin())
        doctor_find(doctor, "passthrough", DOCTOR_WARN,
                    "a mount made by root (CAP_SYS_ADMIN) reads large objects at memory speed",
                    "not for ordinary users: the daemon serves every read and write");
    else
        doctor_find(doctor, "passthrough", DOCTOR_OK, NULL,
                    "large objects are read and mapped past the daemon");
}

void doctor_check_kernel(struct doctor *doctor)
{
    check_version(doctor);
    check_fuse(doctor);
    bool has_ring = check_ring(doctor);
    check_fuse_ring(doctor, has_ring);
    check_passthrough(doctor);
}
