/* IDs: parsing, printing, making. */
#include "core/base/id.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* A digit's value + 1; 0 for what is no digit. */
static const uint8_t digit_values[256] = {
    ['0'] = 1, ['1'] = 2,  ['2'] = 3,  ['3'] = 4,  ['4'] = 5,  ['5'] = 6,  ['6'] = 7,  ['7'] = 8,
    ['8'] = 9, ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
};

bool mob_id_parse(const char *text, size_t length, struct mob_id *out)
{
    struct mob_id id;
    if (length != MOB_ID_DIGITS)
        return false;
    for (size_t i = 0; i < MOB_ID_BYTES; i++) {
        unsigned high = digit_values[(unsigned char)text[2 * i]];
        unsigned low = digit_values[(unsigned char)text[2 * i + 1]];
        if (!high || !low)
            return false;
        id.bytes[i] = (uint8_t)((high - 1) << 4 | (low - 1));
    }
    *out = id;
    return true;
}

char *mob_id_format(const struct mob_id *id, char out[MOB_ID_STRING_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < MOB_ID_BYTES; i++) {
        out[2 * i] = digits[id->bytes[i] >> 4];
        out[2 * i + 1] = digits[id->bytes[i] & 15];
    }
    out[MOB_ID_DIGITS] = '\0';
    return out;
}

static unsigned forks; /* of which this process is the child */

static void count_fork(void)
{
    forks++;
}

static void watch_forks(void)
{
    if (pthread_atfork(NULL, NULL, count_fork))
        abort(); /* no memory at the very start */
}

/* A system call for each ID would cost more than the rest of a put, so random bytes are fetched 256
 * at a time. A forked child must not repeat its parent's: the number of forks is kept beside them.
 */
static errint_t random_bytes(uint8_t *out, size_t bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local struct {
        uint8_t pool[256];
        size_t left;
        unsigned forks;
    } buffer;
    pthread_once(&once, watch_forks);
    if (buffer.left < bytes || buffer.forks != forks) {
        ssize_t got;
        do
            got = getrandom(buffer.pool, sizeof buffer.pool, 0);
        while (got < 0 && errno == EINTR);
        if (got != (ssize_t)sizeof buffer.pool)
            return -EIO;
        buffer.left = sizeof buffer.pool;
        buffer.forks = forks;
    }
    buffer.left -= bytes;
    memcpy(out, buffer.pool + buffer.left, bytes);
    memset(buffer.pool + buffer.left, 0, bytes);
    return 0;
}

errint_t mob_id_new(const uint8_t owner[MOB_ID_OWNER_BYTES], uint32_t index, struct mob_id *out)
{
    struct mob_id id;
    memcpy(id.bytes, owner, MOB_ID_OWNER_BYTES);
    errint_t error = random_bytes(id.bytes + MOB_ID_OWNER_BYTES, MOB_ID_RANDOM_BYTES);
    if (error)
        return error;
    *out = mob_id_with_index(&id, index);
    return 0;
}

struct mob_id mob_id_with_index(const struct mob_id *id, uint32_t index)
{
    struct mob_id out = *id;
    out.bytes[16] = (uint8_t)(index >> 24);
    out.bytes[17] = (uint8_t)(index >> 16);
    out.bytes[18] = (uint8_t)(index >> 8);
    out.bytes[19] = (uint8_t)index;
    return out;
}

uint32_t mob_id_index(const struct mob_id *id)
{
    return (uint32_t)id->bytes[16] << 24 | (uint32_t)id->bytes[17] << 16 |
           (uint32_t)id->bytes[18] << 8 | id->bytes[19];
}
