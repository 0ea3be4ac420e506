/* What a spill directory says of itself: headers of files, mobula-spill, names. */
#include <stdlib.h>
#include <string.h>

#include "core/store/disk_header.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool condition)
{
    if (!condition)
        abort();
}

/* What is taken is taken as a whole: it is written the same again. */
static void check_header(const uint8_t *data, size_t bytes)
{
    struct disk_header header;
    uint8_t again[DISK_HEADER_BYTES];
    if (disk_header_decode(data, bytes, &header))
        return;
    disk_header_encode(&header, again);
    require(bytes == sizeof again && !memcmp(data, again, bytes));
}

static void check_identity(const uint8_t *data, size_t bytes)
{
    struct disk_identity identity;
    char again[DISK_IDENTITY_TEXT_BYTES];
    if (disk_identity_parse((const char *)data, bytes, &identity))
        return;
    disk_identity_format(&identity, again);
    require(bytes == strlen(again) && !memcmp(data, again, bytes));
}

static void check_name(const uint8_t *data, size_t bytes)
{
    char name[32], again[DATA_NAME_BYTES];
    uint64_t file;
    if (bytes >= sizeof name)
        return;
    memcpy(name, data, bytes);
    name[bytes] = '\0';
    if (data_name_parse(name, &file))
        require(!strcmp(data_name(file, again), name));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    /* A copy of its own length, so that a read past its end is noticed. */
    uint8_t *copy = calloc(1, bytes + !bytes);
    require(copy != NULL);
    if (bytes)
        memcpy(copy, data, bytes);
    check_header(copy, bytes);
    check_identity(copy, bytes);
    check_name(copy, bytes);
    free(copy);
    return 0;
}
