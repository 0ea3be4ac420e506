/* Objects in memory by the time of their last use: a binary heap, the oldest on top. */
#include "core/store/store_internal.h"

/* Times go round; two that are compared are never half the way apart. */
static bool before(const struct lru_entry *a, const struct lru_entry *b)
{
    return (int32_t)(a->used - b->used) < 0;
}

static void swap(struct lru_entry *a, struct lru_entry *b)
{
    struct lru_entry kept = *a;
    *a = *b;
    *b = kept;
}

errint_t lru_push(struct lru *lru, uint64_t number, uint32_t used)
{
    if (lru->count == lru->capacity) {
        size_t capacity = lru->capacity ? lru->capacity * 2 : 256;
        struct lru_entry *entries = realloc(lru->entries, capacity * sizeof *entries);
        if (!entries)
            return -ENOMEM;
        lru->entries = entries;
        lru->capacity = capacity;
    }
    size_t i = lru->count++;
    lru->entries[i] = (struct lru_entry){used, number};
    for (; i && before(&lru->entries[i], &lru->entries[(i - 1) / 2]); i = (i - 1) / 2)
        swap(&lru->entries[i], &lru->entries[(i - 1) / 2]);
    return 0;
}

bool lru_pop(struct lru *lru, struct lru_entry *out)
{
    if (!lru->count)
        return false;
    *out = lru->entries[0];
    lru->entries[0] = lru->entries[--lru->count];
    for (size_t i = 0;;) {
        size_t least = i, left = 2 * i + 1, right = left + 1;
        if (left < lru->count && before(&lru->entries[left], &lru->entries[least]))
            least = left;
        if (right < lru->count && before(&lru->entries[right], &lru->entries[least]))
            least = right;
        if (least == i)
            return true;
        swap(&lru->entries[i], &lru->entries[least]);
        i = least;
    }
}

void lru_free(struct lru *lru)
{
    free(lru->entries);
    *lru = (struct lru){0};
}
