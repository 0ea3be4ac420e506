/* Runs a fuzz target over files and folders of kept inputs, where there is no libFuzzer: so that `make check` tries
 * every one of them with any compiler. Prints how many it has run. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "core/base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static unsigned long run_count;

static int run_file(const char *path)
{
    cleanup_free char *content = NULL;
    size_t bytes;
    errint_t error = mob_read_file(AT_FDCWD, path, (size_t)64 << 20, &content, &bytes);
    if (error) {
        fprintf(stderr, "%s: %s\n", path, strerror(-error));
        return 1;
    }
    run_count++;
    return LLVMFuzzerTestOneInput((const uint8_t *)content, bytes);
}

static int run_path(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    int failed = 0;
    if (!directory)
        return run_file(path);
    while ((entry = readdir(directory))) {
        char inner[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        failed |= run_path(inner);
    }
    closedir(directory);
    return failed;
}

int main(int argc, char **argv)
{
    int failed = 0;
    for (int i = 1; i < argc; i++)
        failed |= run_path(argv[i]);
    printf("%lu inputs run\n", run_count);
    return failed || run_count == 0;
}
