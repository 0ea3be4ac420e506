/* Small parsers of core/base: IDs, sizes, durations, UTF-8. */
#include <stdlib.h>
#include <string.h>

#include "core/base/id.h"
#include "core/base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void check_id(const char *text, size_t bytes)
{
    struct mob_id id;
    char again[MOB_ID_STRING_BYTES];
    if (!mob_id_parse(text, bytes, &id))
        return;
    require(bytes == MOB_ID_DIGITS);
    mob_id_format(&id, again);
    require(!memcmp(again, text, bytes));
    struct mob_id other = mob_id_with_index(&id, 7);
    require(mob_id_index(&other) == 7);
    other = mob_id_with_index(&other, mob_id_index(&id));
    require(mob_id_equal(&other, &id));
}

static void check_numbers(const char *text)
{
    uint64_t value;
    char out[32];
    struct mob_error err = {0};
    if (!mob_parse_size(text, 1000000, &value, &err))
        require(value <= UINT64_C(9200000000000000000) && mob_format_size(value, out)[0]);
    else
        require(err.code == -EINVAL && err.message[0]);
    if (!mob_parse_duration(text, &value, &err))
        require(value <= UINT64_C(9200000000000000000) && mob_format_duration(value, out)[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char *text = malloc(bytes + 1);
    require(text != NULL);
    if (bytes)
        memcpy(text, data, bytes);
    text[bytes] = '\0';
    check_id(text, bytes);
    check_numbers(text);
    if (mob_is_utf8(text, bytes))
        require(!memchr(text, 0, bytes));
    free(text);
    return 0;
}
