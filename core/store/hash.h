/* A chained hash table of nodes that live inside their owners, for directories and staged files:
 * tens to a few hundred thousand entries. (Objects have a table of their own, table.c.) Not locked.
 */
#ifndef MOBULA_CORE_STORE_HASH_H
#define MOBULA_CORE_STORE_HASH_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "core/base/error.h"

struct hash_node {
    struct hash_node *next;
    uint64_t hash;
};

struct hash_table {
    struct hash_node **buckets;
    size_t bucket_count; /* a power of two */
    size_t count;
};

#define hash_entry(node, type, member) ((type *)((char *)(node)-offsetof(type, member)))

/* Mixes a number so that all its bits reach the low ones (the finaliser of MurmurHash3, public
 * domain). */
static inline uint64_t hash_number(uint64_t value)
{
    value ^= value >> 33;
    value *= UINT64_C(0xff51afd7ed558ccd);
    value ^= value >> 33;
    value *= UINT64_C(0xc4ceb9fe1a85ec53);
    return value ^ value >> 33;
}

static inline errint_t hash_init(struct hash_table *table, size_t bucket_count)
{
    table->count = 0;
    table->bucket_count = bucket_count;
    table->buckets = calloc(bucket_count, sizeof *table->buckets);
    return table->buckets ? 0 : -ENOMEM;
}

static inline void hash_destroy(struct hash_table *table)
{
    free(table->buckets);
    table->buckets = NULL;
    table->bucket_count = table->count = 0;
}

/* Growing is an optimisation: without memory for it the chains just get longer. */
static inline void hash_grow(struct hash_table *table)
{
    size_t bucket_count = table->bucket_count * 4;
    struct hash_node **buckets = calloc(bucket_count, sizeof *buckets);
    if (!buckets)
        return;
    for (size_t i = 0; i < table->bucket_count; i++) {
        struct hash_node *node = table->buckets[i];
        while (node) {
            struct hash_node *next = node->next;
            node->next = buckets[node->hash & (bucket_count - 1)];
            buckets[node->hash & (bucket_count - 1)] = node;
            node = next;
        }
    }
    free(table->buckets);
    table->buckets = buckets;
    table->bucket_count = bucket_count;
}

static inline void hash_insert(struct hash_table *table, struct hash_node *node, uint64_t hash)
{
    if (table->count >= table->bucket_count * 2)
        hash_grow(table);
    struct hash_node **bucket = &table->buckets[hash & (table->bucket_count - 1)];
    node->hash = hash;
    node->next = *bucket;
    *bucket = node;
    table->count++;
}

static inline void hash_remove(struct hash_table *table, struct hash_node *node)
{
    struct hash_node **link = &table->buckets[node->hash & (table->bucket_count - 1)];
    while (*link != node)
        link = &(*link)->next;
    *link = node->next;
    table->count--;
}

/* The first node with this hash, and the next one after `node` with the same. */
static inline struct hash_node *hash_same(struct hash_node *node, uint64_t hash)
{
    while (node && node->hash != hash)
        node = node->next;
    return node;
}
static inline struct hash_node *hash_first(const struct hash_table *table, uint64_t hash)
{
    return hash_same(table->buckets[hash & (table->bucket_count - 1)], hash);
}
static inline struct hash_node *hash_next(const struct hash_node *node)
{
    return hash_same(node->next, node->hash);
}

#endif
