/* readways WAY FILE OUT: copies FILE to OUT by one way of reading: read, mmap, pread (blocks of an
 * odd size, last first), readv, sendfile, splice, copy_file_range. OUT is on another filesystem. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int in, out;
static size_t size;
static char *copy; /* `size` bytes, for the ways that read into memory */

static void die(const char *what)
{
    fprintf(stderr, "readways: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void write_copy(const char *from)
{
    for (size_t done = 0; done < size;) {
        ssize_t written = write(out, from + done, size - done);
        if (written <= 0)
            die("write");
        done += (size_t)written;
    }
}

static void by_read(void)
{
    for (size_t done = 0; done < size;) {
        ssize_t bytes = read(in, copy + done, size - done);
        if (bytes <= 0)
            die("read");
        done += (size_t)bytes;
    }
    write_copy(copy);
}

static void by_mmap(void)
{
    if (size == 0)
        return;
    char *map = mmap(NULL, size, PROT_READ, MAP_SHARED, in, 0);
    if (map == MAP_FAILED)
        die("mmap");
    memcpy(copy, map, size);
    write_copy(copy);
}

static void by_pread(void)
{
    const size_t block = 4999;
    for (size_t end = size; end > 0;) {
        size_t start = end > block ? end - block : 0;
        if (pread(in, copy + start, end - start, (off_t)start) != (ssize_t)(end - start))
            die("pread");
        end = start;
    }
    char byte;
    if (pread(in, &byte, 1, (off_t)size) != 0 || pread(in, &byte, 1, (off_t)size + 12345) != 0)
        die("pread past the end");
    write_copy(copy);
}

static void by_readv(void)
{
    for (size_t done = 0; done < size;) {
        size_t left = size - done, first = left / 3, second = left / 7;
        struct iovec parts[3] = {{copy + done, first},
                                 {copy + done + first, second},
                                 {copy + done + first + second, left - first - second}};
        ssize_t bytes = readv(in, parts, 3);
        if (bytes <= 0)
            die("readv");
        done += (size_t)bytes;
    }
    write_copy(copy);
}

static void by_sendfile(void)
{
    for (size_t done = 0; done < size;) {
        ssize_t bytes = sendfile(out, in, NULL, size - done);
        if (bytes <= 0)
            die("sendfile");
        done += (size_t)bytes;
    }
}

static void by_splice(void)
{
    int ends[2];
    if (pipe(ends) != 0)
        die("pipe");
    for (size_t done = 0; done < size;) {
        ssize_t bytes = splice(in, NULL, ends[1], NULL, 65536, 0);
        if (bytes <= 0)
            die("splice in");
        for (ssize_t moved = 0; moved < bytes;) {
            ssize_t part = splice(ends[0], NULL, out, NULL, (size_t)(bytes - moved), 0);
            if (part <= 0)
                die("splice out");
            moved += part;
        }
        done += (size_t)bytes;
    }
}

static void by_copy_file_range(void)
{
    for (size_t done = 0; done < size;) {
        ssize_t bytes = copy_file_range(in, NULL, out, NULL, size - done, 0);
        if (bytes < 0 && (errno == EXDEV || errno == EOPNOTSUPP || errno == ENOSYS)) {
            /* As cp does, where the kernel doesn't copy between these two filesystems. */
            by_sendfile();
            return;
        }
        if (bytes <= 0)
            die("copy_file_range");
        done += (size_t)bytes;
    }
}

static const struct way {
    const char *name;
    void (*run)(void);
} ways[] = {
    {"read", by_read},
    {"mmap", by_mmap},
    {"pread", by_pread},
    {"readv", by_readv},
    {"sendfile", by_sendfile},
    {"splice", by_splice},
    {"copy_file_range", by_copy_file_range},
};

int main(int argc, char **argv)
{
    struct stat status;
    if (argc != 4) {
        fprintf(stderr, "usage: readways WAY FILE OUT\n");
        return 2;
    }
    in = open(argv[2], O_RDONLY);
    out = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (in < 0 || out < 0 || fstat(in, &status) != 0)
        die(argv[2]);
    size = (size_t)status.st_size;
    copy = malloc(size + 1);
    if (!copy)
        die("malloc");
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        if (strcmp(ways[i].name, argv[1]) == 0) {
            ways[i].run();
            free(copy);
            return close(out) == 0 ? 0 : 1;
        }
    }
    fprintf(stderr, "readways: unknown way %s\n", argv[1]);
    return 2;
}
