/* Known nodes: one bit a hash. False alarms cost a needless notification, nothing else. */
#include "fs/known.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FILTER_BITS (1u << 22)

struct known {
    uint64_t bits[FILTER_BITS / 64];
};

errint_t known_open(bool everything, struct known **out)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return -ENOMEM;
    if (everything)
        memset((*out)->bits, 0xff, sizeof(*out)->bits);
    return 0;
}

void known_close(struct known *known)
{
    free(known);
}

static uint32_t bit_of(uint64_t node)
{
    return (uint32_t)((node * UINT64_C(0x9e3779b97f4a7c15)) >> 42) % FILTER_BITS;
}

/* Relaxed: a mark is made before the reply that tells the kernel, and a question about a node that
 * the kernel has only just been told of comes after that through the kernel's own locks. */
void known_mark(struct known *known, uint64_t node)
{
    uint32_t bit = bit_of(node);
    uint64_t mask = UINT64_C(1) << bit % 64;
    if (!(__atomic_load_n(&known->bits[bit / 64], __ATOMIC_RELAXED) & mask))
        __atomic_fetch_or(&known->bits[bit / 64], mask, __ATOMIC_RELAXED);
}

/* Relaxed: what the caller does if it was marked is ordered by its own locks. */
bool known_take(struct known *known, uint64_t node)
{
    uint32_t bit = bit_of(node);
    uint64_t mask = UINT64_C(1) << bit % 64;
    return known_may_have(known, node) &&
           __atomic_fetch_and(&known->bits[bit / 64], ~mask, __ATOMIC_RELAXED) & mask;
}

bool known_may_have(const struct known *known, uint64_t node)
{
    uint32_t bit = bit_of(node);
    return __atomic_load_n(&known->bits[bit / 64], __ATOMIC_RELAXED) >> bit % 64 & 1;
}
