/* scatter SOURCE TARGET SEED [PART PARTS]: writes the content of SOURCE into TARGET with pwrite(2),
 * in blocks of an odd size, in an order that SEED decides; only each PARTS-th block, from PART on.
 * TARGET is made if it doesn't exist, and not truncated. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 7919 };

int main(int argc, char **argv)
{
    struct stat status;
    if (argc != 4 && argc != 6) {
        fprintf(stderr, "usage: scatter SOURCE TARGET SEED [PART PARTS]\n");
        return 2;
    }
    unsigned seed = (unsigned)strtoul(argv[3], NULL, 10);
    size_t part = argc == 6 ? strtoul(argv[4], NULL, 10) : 0;
    size_t parts = argc == 6 ? strtoul(argv[5], NULL, 10) : 1;
    int in = open(argv[1], O_RDONLY);
    int out = open(argv[2], O_WRONLY | O_CREAT, 0666);
    if (in < 0 || out < 0 || fstat(in, &status) != 0 || status.st_size == 0 || parts == 0) {
        perror("scatter: open");
        return 1;
    }
    size_t size = (size_t)status.st_size, blocks = (size + BLOCK - 1) / BLOCK;
    const char *source = mmap(NULL, size, PROT_READ, MAP_SHARED, in, 0);
    size_t *order = calloc(blocks, sizeof(*order));
    if (source == MAP_FAILED || !order) {
        perror("scatter");
        return 1;
    }
    for (size_t i = 0; i < blocks; i++)
        order[i] = i;
    for (size_t i = blocks; i > 1; i--) {
        size_t other = (size_t)rand_r(&seed) % i, swapped = order[i - 1];
        order[i - 1] = order[other];
        order[other] = swapped;
    }
    for (size_t i = 0; i < blocks; i++) {
        size_t offset = order[i] * BLOCK;
        size_t bytes = size - offset < BLOCK ? size - offset : BLOCK;
        if (order[i] % parts == part &&
            pwrite(out, source + offset, bytes, (off_t)offset) != (ssize_t)bytes) {
            perror("scatter: pwrite");
            return 1;
        }
    }
    free(order);
    if (close(out) != 0) {
        perror("scatter: close");
        return 1;
    }
    return 0;
}
