/* stallimage IMAGE FOLDER: shows the file IMAGE as FOLDER/image, without a cache, so that a
 * filesystem that is loop-mounted from there has a disk that stalls while this process is stopped
 * (SIGSTOP). Ends when FOLDER is unmounted. */
#define FUSE_USE_VERSION 314
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int image;

static int get_attributes(const char *path, struct stat *out, struct fuse_file_info *file)
{
    (void)file;
    if (strcmp(path, "/") == 0) {
        *out = (struct stat){.st_mode = S_IFDIR | 0755, .st_nlink = 2};
        return 0;
    }
    if (strcmp(path, "/image") != 0)
        return -ENOENT;
    return fstat(image, out) < 0 ? -errno : 0;
}

static int open_image(const char *path, struct fuse_file_info *file)
{
    (void)path;
    file->direct_io = 1;
    return 0;
}

static int read_image(const char *path, char *buffer, size_t bytes, off_t offset,
                      struct fuse_file_info *file)
{
    (void)path;
    (void)file;
    ssize_t got = pread(image, buffer, bytes, offset);
    return got < 0 ? -errno : (int)got;
}

static int write_image(const char *path, const char *bytes, size_t count, off_t offset,
                       struct fuse_file_info *file)
{
    (void)path;
    (void)file;
    ssize_t put = pwrite(image, bytes, count, offset);
    return put < 0 ? -errno : (int)put;
}

static const struct fuse_operations operations = {
    .getattr = get_attributes, .open = open_image, .read = read_image, .write = write_image};

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: stallimage IMAGE FOLDER\n");
        return 2;
    }
    image = open(argv[1], O_RDWR);
    if (image < 0) {
        perror(argv[1]);
        return 1;
    }
    /* Whoever mounts another loop device asks for the attributes of all images: nobody is to wait
     * for that. */
    char *arguments[] = {argv[0], "-f", "-o", "attr_timeout=86400", argv[2], NULL};
    return fuse_main(5, arguments, &operations, NULL);
}
