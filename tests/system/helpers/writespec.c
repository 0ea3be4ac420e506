/* writespec FILE: copies standard input into a new FILE and says what became of it: "ok", or which
 * call failed with which errno ("close EINVAL"). The shell's own redirection doesn't look at close.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int failed(const char *call)
{
    printf("%s %s\n", call, strerrorname_np(errno));
    return 1;
}

int main(int argc, char **argv)
{
    static char buffer[1 << 16];
    if (argc != 2) {
        fprintf(stderr, "usage: writespec FILE\n");
        return 2;
    }
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0)
        return failed("open");
    ssize_t bytes;
    while ((bytes = read(STDIN_FILENO, buffer, sizeof(buffer))) > 0) {
        for (ssize_t done = 0; done < bytes;) {
            ssize_t written = write(fd, buffer + done, (size_t)(bytes - done));
            if (written < 0)
                return failed("write");
            done += written;
        }
    }
    if (bytes < 0)
        return failed("read");
    if (close(fd) != 0)
        return failed("close");
    puts("ok");
    return 0;
}
