/* The model's state: names, objects, staged files. See model.h. */
#include "tests/model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *must_alloc(void *pointer)
{
    CHECK(pointer, "out of memory");
    return pointer;
}

/* --- paths --- */

static size_t append_path(const struct node *node, char *out, size_t bytes)
{
    size_t length;

    if (!node->parent)
        return (size_t)snprintf(out, bytes, "%s/staging", mount_root());
    length = append_path(node->parent, out, bytes);
    return length + (size_t)snprintf(out + length, bytes - length, "/%s", node->name);
}

static char *path_buffer(void)
{
    static char ring[8][PATH_MAX];
    static unsigned next;

    return ring[next++ % 8];
}

const char *path_of(const struct node *node)
{
    char *out = path_buffer();

    append_path(node, out, PATH_MAX);
    return out;
}

const char *path_in(const struct node *directory, const char *name)
{
    char *out = path_buffer();
    size_t length = append_path(directory, out, PATH_MAX);

    snprintf(out + length, PATH_MAX - length, "/%s", name);
    return out;
}

const char *short_path(const char *path)
{
    size_t length = strlen(mount_root());

    return strncmp(path, mount_root(), length) == 0 ? path + length + 1 : path;
}

unsigned depth_of(const struct node *directory)
{
    unsigned depth = 0;

    while ((directory = directory->parent))
        depth++;
    return depth;
}

bool is_inside(const struct node *node, const struct node *directory)
{
    for (; node; node = node->parent)
        if (node == directory)
            return true;
    return false;
}

/* --- names --- */

struct node *child_of(const struct node *directory, const char *name)
{
    for (unsigned i = 0; i < model.node_count; i++)
        if (model.nodes[i]->parent == directory && strcmp(model.nodes[i]->name, name) == 0)
            return model.nodes[i];
    return NULL;
}

struct node *node_add(struct node *directory, const char *name, enum node_kind kind)
{
    struct node *node = must_alloc(calloc(1, sizeof(*node)));

    node->kind = kind;
    node->parent = directory;
    snprintf(node->name, sizeof(node->name), "%s", name);
    if (directory) {
        directory->entries++;
        directory->subdirectories += kind == NODE_DIRECTORY;
    }
    CHECK(model.node_count < NODE_LIMIT + 64, "the model's table of names is full");
    model.nodes[model.node_count++] = node;
    return node;
}

void node_move(struct node *node, struct node *directory, const char *name)
{
    char copy[256];

    snprintf(copy, sizeof(copy), "%s", name);
    node->parent->entries--;
    node->parent->subdirectories -= node->kind == NODE_DIRECTORY;
    node->parent = directory;
    directory->entries++;
    directory->subdirectories += node->kind == NODE_DIRECTORY;
    memcpy(node->name, copy, sizeof(copy));
}

void node_remove(struct node *node)
{
    node->parent->entries--;
    node->parent->subdirectories -= node->kind == NODE_DIRECTORY;
    for (unsigned i = 0; i < model.node_count; i++)
        if (model.nodes[i] == node)
            model.nodes[i] = model.nodes[--model.node_count];
    if (node->kind == NODE_OBJECT) {
        node->object->names--;
        object_release(node->object);
    }
    if (node->kind == NODE_STAGED)
        node->staged->node = NULL;
    free(node);
}

/* --- choosing --- */

struct node *any_directory(void)
{
    struct node *found = model.nodes[0];
    unsigned seen = 0;

    for (unsigned i = 0; i < model.node_count; i++) {
        struct node *node = model.nodes[i];

        if (node->kind == NODE_DIRECTORY && depth_of(node) < DEPTH_LIMIT &&
            dice_below(&model.dice, ++seen) == 0)
            found = node;
    }
    return found;
}

struct node *any_node(void)
{
    struct node *node;

    if (model.node_count < 2)
        return NULL;
    do {
        node = model.nodes[dice_below(&model.dice, model.node_count)];
    } while (!node->parent);
    return node;
}

struct node *any_of(enum node_kind kind)
{
    struct node *found = NULL;
    unsigned seen = 0;

    for (unsigned i = 0; i < model.node_count; i++)
        if (model.nodes[i]->parent && model.nodes[i]->kind == kind &&
            dice_below(&model.dice, ++seen) == 0)
            found = model.nodes[i];
    return found;
}

struct object *any_object(void)
{
    if (model.object_count == 0)
        return NULL;
    return model.objects[dice_below(&model.dice, model.object_count)];
}

struct object *any_named_object(void)
{
    struct node *node = any_of(NODE_OBJECT);

    return node ? node->object : NULL;
}

const char *any_name(void)
{
    static const char *const odd[] = {".hidden",   "with space", "\xc3\xbcml\xc3\xa4ut",
                                      "new\nline", "-dash",      "a.tar.gz",
                                      "objects",   "..."};
    static char longest[256];
    static char plain[16];
    uint64_t roll = dice_below(&model.dice, 100);

    if (roll < 10)
        return odd[dice_below(&model.dice, sizeof(odd) / sizeof(*odd))];
    if (roll < 13) {
        memset(longest, 'l', 255);
        return longest;
    }
    snprintf(plain, sizeof(plain), "n%u", (unsigned)dice_below(&model.dice, 30));
    return plain;
}

/* --- objects --- */

struct object *object_new(const char *id, const void *data, size_t size, mode_t mode)
{
    struct object *object = must_alloc(calloc(1, sizeof(*object)));

    snprintf(object->id, sizeof(object->id), "%s", id);
    object->data = must_alloc(malloc(size ? size : 1));
    if (size)
        memcpy(object->data, data, size);
    object->size = size;
    object->mode = mode;
    CHECK(model.object_count < OBJECT_LIMIT + 64, "the model's table of objects is full");
    model.objects[model.object_count++] = object;
    return object;
}

void object_hold_name(struct object *object)
{
    object->names++;
}

void object_release(struct object *object)
{
    struct object *refs[REF_LIMIT];
    unsigned count = object->ref_count;

    if (object->names || object->containers || object->opens)
        return;
    memcpy(refs, object->refs, sizeof(refs));
    for (unsigned i = 0; i < model.object_count; i++)
        if (model.objects[i] == object)
            model.objects[i] = model.objects[--model.object_count];
    memcpy(model.freed[model.freed_count++ % FREED_RING], object->id, sizeof(object->id));
    free(object->data);
    free(object);
    for (unsigned i = 0; i < count; i++) {
        refs[i]->containers--;
        object_release(refs[i]);
    }
}

/* --- staged files --- */

void staged_resize_model(struct staged *staged, size_t size)
{
    if (size > staged->capacity) {
        size_t capacity = size + size / 2 + 4096;

        staged->data = must_alloc(realloc(staged->data, capacity));
        staged->capacity = capacity;
    }
    if (size > staged->size)
        memset(staged->data + staged->size, 0, size - staged->size);
    staged->size = size;
}

void staged_write_model(struct staged *staged, size_t offset, const void *data, size_t bytes)
{
    if (bytes == 0)
        return;
    if (offset + bytes > staged->size)
        staged_resize_model(staged, offset + bytes);
    memcpy(staged->data + offset, data, bytes);
}

void staged_free(struct staged *staged)
{
    free(staged->data);
    free(staged);
}
