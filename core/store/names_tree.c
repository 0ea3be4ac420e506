/* The directories in memory: found by number, linked to their parents and children. */
#include <string.h>
#include <sys/stat.h>

#include "core/store/store_internal.h"

struct directory *directory_get(struct store *store, uint64_t number)
{
    uint64_t hash = hash_number(number);
    struct hash_node *node = hash_first(&store->directories, hash);
    for (; node; node = hash_next(node)) {
        struct directory *directory = hash_entry(node, struct directory, by_number);
        if (directory->number == number)
            return directory;
    }
    return NULL;
}

struct directory *directory_new(uint64_t number, uint64_t parent, uint64_t key, const char *name,
                                size_t name_bytes)
{
    struct directory *directory = calloc(1, sizeof *directory);
    if (!directory)
        return NULL;
    directory->name = malloc(name_bytes + 1);
    if (!directory->name) {
        free(directory);
        return NULL;
    }
    memcpy(directory->name, name, name_bytes);
    directory->name[name_bytes] = '\0';
    directory->name_bytes = (uint8_t)name_bytes;
    directory->number = number;
    directory->parent = parent;
    directory->key = key;
    return directory;
}

void directory_free(struct directory *directory)
{
    if (!directory)
        return;
    free(directory->name);
    free(directory);
}

static void link_child(struct store *store, struct directory *directory)
{
    struct directory *parent = directory_get(store, directory->parent);
    directory->previous_sibling = NULL;
    directory->next_sibling = parent ? parent->first_child : NULL;
    if (!parent)
        return;
    if (parent->first_child)
        parent->first_child->previous_sibling = directory;
    parent->first_child = directory;
    parent->subdirectories++;
}

void directory_attach(struct store *store, struct directory *directory)
{
    hash_insert(&store->directories, &directory->by_number, hash_number(directory->number));
    link_child(store, directory);
}

void directory_detach(struct store *store, struct directory *directory)
{
    struct directory *parent = directory_get(store, directory->parent);
    if (directory->next_sibling)
        directory->next_sibling->previous_sibling = directory->previous_sibling;
    if (directory->previous_sibling)
        directory->previous_sibling->next_sibling = directory->next_sibling;
    else if (parent)
        parent->first_child = directory->next_sibling;
    directory->next_sibling = directory->previous_sibling = NULL;
    if (parent)
        parent->subdirectories--;
    hash_remove(&store->directories, &directory->by_number);
}

unsigned directory_depth(struct store *store, const struct directory *directory)
{
    unsigned depth = 0;
    while (directory && directory->parent) {
        directory = directory_get(store, directory->parent);
        depth++;
    }
    return depth;
}

uint64_t directory_root(struct store *store, const struct directory *directory)
{
    while (directory && directory->parent) {
        const struct directory *parent = directory_get(store, directory->parent);
        if (!parent)
            break;
        directory = parent;
    }
    return directory ? directory->number : 0;
}

void directory_count(struct store *store, uint64_t number, int change, uint64_t now_ns)
{
    struct directory *directory = directory_get(store, number);
    if (!directory)
        return;
    if (change > 0)
        directory->entries++;
    else if (change < 0 && directory->entries)
        directory->entries--;
    directory->mtime_ns = now_ns;
}

void directory_record(const struct directory *directory, struct name_record *out)
{
    *out = (struct name_record){
        .type = NAME_DIRECTORY,
        .mode = directory->mode,
        .uid = directory->uid,
        .gid = directory->gid,
        .number = directory->number,
        .mtime_ns = directory->mtime_ns,
        .set_ns = directory->set_ns,
        .name = directory->name,
        .name_bytes = directory->name_bytes,
    };
}

void directory_set_info(struct store *store, const struct directory *directory,
                        struct name_info *out)
{
    *out = (struct name_info){
        .type = NAME_DIRECTORY,
        .number = directory->number,
        .parent = directory->parent,
        .depth = directory_depth(store, directory),
        .mode = S_IFDIR | directory->mode,
        .uid = directory->uid,
        .gid = directory->gid,
        .mtime_ns = directory->mtime_ns,
        .links = 2 + directory->subdirectories,
        .entries = directory->entries,
    };
}

void tree_destroy(struct store *store)
{
    for (size_t i = 0; i < store->directories.bucket_count; i++) {
        struct hash_node *node = store->directories.buckets[i];
        while (node) {
            struct hash_node *next = node->next;
            directory_free(hash_entry(node, struct directory, by_number));
            node = next;
        }
    }
    for (size_t i = 0; i < store->unresolved.bucket_count; i++) {
        struct hash_node *node = store->unresolved.buckets[i];
        while (node) {
            struct hash_node *next = node->next;
            free(hash_entry(node, struct unresolved, node));
            node = next;
        }
    }
    for (size_t i = 0; i < store->staged_numbers.bucket_count; i++) {
        struct hash_node *node = store->staged_numbers.buckets[i];
        while (node) {
            struct hash_node *next = node->next;
            staged_put(store, hash_entry(node, struct staged, by_number));
            node = next;
        }
    }
    hash_destroy(&store->directories);
    hash_destroy(&store->unresolved);
    hash_destroy(&store->staged_numbers);
    hash_destroy(&store->staged_names);
}

errint_t names_path(struct store *store, uint64_t number, const char *name, char **path)
{
    size_t name_bytes = name ? strlen(name) + 1 : 0, bytes = 0;
    cleanup_lock pthread_mutex_t *lock = mob_lock(&store->tree_lock);
    const struct directory *directory = directory_get(store, number);
    if (!directory)
        return -ENOENT;
    const struct directory *up = directory;
    for (; up; up = up->parent ? directory_get(store, up->parent) : NULL)
        bytes += up->name_bytes + (size_t)1;
    char *out = malloc(bytes + name_bytes);
    if (!out)
        return -ENOMEM;
    char *at = out + bytes - 1;
    *at = '\0';
    for (up = directory; up; up = up->parent ? directory_get(store, up->parent) : NULL) {
        at -= up->name_bytes;
        memcpy(at, up->name, up->name_bytes);
        if (at > out)
            *--at = '/';
    }
    if (name) {
        out[bytes - 1] = '/';
        memcpy(out + bytes, name, name_bytes);
    }
    *path = out;
    return 0;
}
