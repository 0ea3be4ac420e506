/* digits: recognises handwritten digits by their nearest neighbours. It is the program of the demo:
 * demo/run compiles it and puts it into the store, and jobs run it from there.
 *
 *     digits train TRAINING MODEL    TRAINING: 64 pixels of 0..16 and the digit a line, CSV
 *     digits classify MODEL BATCH    BATCH: a number and 64 pixels a line; prints "number digit"
 *
 * Training tries how much to blur and how many neighbours to ask, writes the best and the blurred
 * images as the model, and says on standard output what it found. For that, every image is
 * recognised from those of the other groups only: the file has one writer's images one after the
 * other, and a writer's own images would make it look better than it is for writers unseen.
 * An image to be recognised is compared as it is and shifted by one pixel each way. */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SIDE = 8,
    PIXELS = SIDE * SIDE,
    DARKEST = 16,
    DIGITS = 10,
    IMAGES_LIMIT = 100000,
    NEIGHBOURS_LIMIT = 7,
    GROUP = 130, /* images that one writer made, about */
    BLUR_LIMIT = 50,
    VALUE_LIMIT = DARKEST * (100 + 4 * BLUR_LIMIT),
};
_Static_assert((int64_t)PIXELS * VALUE_LIMIT * VALUE_LIMIT < INT32_MAX, "distances fit");

#define MODEL_HEADER "digits-model 1"

struct image {
    long label; /* its digit, or its number in a batch */
    int16_t values[PIXELS];
};

struct images {
    struct image *list;
    size_t count;
};

static _Noreturn __attribute__((format(printf, 1, 2))) void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("digits: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(EXIT_FAILURE);
}

static FILE *open_or_die(const char *path, const char *mode)
{
    FILE *file = fopen(path, mode);
    if (!file)
        die("%s: %s", path, strerror(errno));
    return file;
}

static void close_or_die(FILE *file, const char *path)
{
    if (ferror(file) | fclose(file))
        die("%s: %s", path, strerror(errno));
}

/* Reads one integer of low..high that ends in `end` (or, for '\n', at the end of the text). */
static long read_number(char **text, char end, long low, long high, const char *path, size_t line)
{
    char *stop;
    errno = 0;
    long number = strtol(*text, &stop, 10);
    if (stop == *text || errno || number < low || number > high || (*stop != end && *stop))
        die("%s:%zu: expected a number of %ld..%ld at \"%.20s\"", path, line, low, high, *text);
    if (!*stop && end != '\n')
        die("%s:%zu: the line is too short", path, line);
    *text = stop + (*stop != '\0');
    return number;
}

/* Reads images, a line each, until the end of the file. `label_first`: the label stands before the
 * pixels. `separator` stands between two numbers. */
static struct images read_images(FILE *file, const char *path, size_t line, char separator,
                                 bool label_first, long label_limit, long value_limit)
{
    struct images images = {0};
    size_t room = 0;
    char *text = NULL;
    size_t text_bytes = 0;

    for (line++; getline(&text, &text_bytes, file) > 0; line++) {
        if (images.count == IMAGES_LIMIT)
            die("%s: more than %d images", path, IMAGES_LIMIT);
        if (images.count == room) {
            room = room ? room * 2 : 256;
            images.list = realloc(images.list, room * sizeof(*images.list));
            if (!images.list)
                die("out of memory");
        }
        struct image *image = &images.list[images.count++];
        char *at = text;
        if (label_first)
            image->label = read_number(&at, separator, 0, label_limit, path, line);
        for (int i = 0; i < PIXELS; i++)
            image->values[i] =
                (int16_t)read_number(&at, label_first && i == PIXELS - 1 ? '\n' : separator, 0,
                                     value_limit, path, line);
        if (!label_first)
            image->label = read_number(&at, '\n', 0, label_limit, path, line);
    }
    if (ferror(file))
        die("%s: %s", path, strerror(errno));
    free(text);
    if (images.count == 0)
        die("%s: no images", path);
    return images;
}

/* The pixel at (x, y) of `image`, or 0 outside of it. */
static int pixel(const struct image *image, int x, int y)
{
    return x < 0 || y < 0 || x >= SIDE || y >= SIDE ? 0 : image->values[y * SIDE + x];
}

/* `image` moved by (dx, dy), each pixel a hundredfold and mixed with `blur` percent of each of the
 * four beside it. */
static struct image prepare(const struct image *image, int blur, int dx, int dy)
{
    struct image out = {.label = image->label};

    for (int y = 0; y < SIDE; y++) {
        for (int x = 0; x < SIDE; x++) {
            int left = x - dx;
            int top = y - dy;
            int beside = pixel(image, left - 1, top) + pixel(image, left + 1, top) +
                         pixel(image, left, top - 1) + pixel(image, left, top + 1);
            out.values[y * SIDE + x] =
                (int16_t)(100 * pixel(image, left, top) + blur * beside);
        }
    }
    return out;
}

static int32_t distance(const struct image *a, const struct image *b)
{
    int32_t sum = 0;
    for (int i = 0; i < PIXELS; i++) {
        int32_t difference = a->values[i] - b->values[i];
        sum += difference * difference;
    }
    return sum;
}

struct neighbour {
    int32_t distance;
    long digit;
};

/* The nearest ones of `examples` to `image` in any of its shifted forms, nearest first. Examples
 * first_except..end_except-1 are left out. */
static void find_neighbours(const struct images *examples, const struct image *image, int blur,
                            size_t first_except, size_t end_except,
                            struct neighbour nearest[NEIGHBOURS_LIMIT])
{
    static const int shifts[][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}};
    enum { SHIFTS = sizeof(shifts) / sizeof(shifts[0]) };
    struct image forms[SHIFTS];

    for (int s = 0; s < SHIFTS; s++)
        forms[s] = prepare(image, blur, shifts[s][0], shifts[s][1]);
    for (int n = 0; n < NEIGHBOURS_LIMIT; n++)
        nearest[n] = (struct neighbour){INT32_MAX, -1};

    for (size_t e = 0; e < examples->count; e++) {
        if (e >= first_except && e < end_except)
            continue;
        struct neighbour found = {INT32_MAX, examples->list[e].label};
        for (int s = 0; s < SHIFTS; s++) {
            int32_t d = distance(&forms[s], &examples->list[e]);
            if (d < found.distance)
                found.distance = d;
        }
        for (int n = 0; n < NEIGHBOURS_LIMIT; n++) {
            if (found.distance < nearest[n].distance) {
                struct neighbour pushed = nearest[n];
                nearest[n] = found;
                found = pushed;
            }
        }
    }
}

/* The digit that most of the `count` nearest have; the nearer wins a tie. */
static long vote(const struct neighbour *nearest, int count)
{
    int votes[DIGITS] = {0};
    long winner = nearest[0].digit;

    for (int n = 0; n < count && nearest[n].digit >= 0; n++)
        votes[nearest[n].digit]++;
    for (int n = 0; n < count && nearest[n].digit >= 0; n++)
        if (votes[nearest[n].digit] > votes[winner])
            winner = nearest[n].digit;
    return winner;
}

static struct images blur_all(const struct images *raw, int blur)
{
    struct images blurred = {calloc(raw->count, sizeof(*raw->list)), raw->count};
    if (!blurred.list)
        die("out of memory");
    for (size_t i = 0; i < raw->count; i++)
        blurred.list[i] = prepare(&raw->list[i], blur, 0, 0);
    return blurred;
}

static void write_model(const char *path, const struct images *raw, int blur, int neighbours)
{
    FILE *file = open_or_die(path, "w");
    struct images blurred = blur_all(raw, blur);

    fprintf(file, "%s\nblur %d\nneighbours %d\n", MODEL_HEADER, blur, neighbours);
    for (size_t i = 0; i < blurred.count; i++) {
        fprintf(file, "%ld", blurred.list[i].label);
        for (int p = 0; p < PIXELS; p++)
            fprintf(file, " %d", blurred.list[i].values[p]);
        fputc('\n', file);
    }
    free(blurred.list);
    close_or_die(file, path);
}

/* How many of `raw` are recognised from the other groups' images with each number of neighbours. */
static void validate(const struct images *raw, int blur, size_t right[NEIGHBOURS_LIMIT + 1])
{
    struct images blurred = blur_all(raw, blur);

    for (size_t i = 0; i < raw->count; i++) {
        struct neighbour nearest[NEIGHBOURS_LIMIT];
        size_t group = i - i % GROUP;
        find_neighbours(&blurred, &raw->list[i], blur, group, group + GROUP, nearest);
        for (int k = 1; k <= NEIGHBOURS_LIMIT; k += 2)
            right[k] += vote(nearest, k) == raw->list[i].label;
    }
    free(blurred.list);
}

static int train(const char *training_path, const char *model_path)
{
    static const int blurs[] = {0, 10, 20, 30};
    int best_blur = 0;
    int best_neighbours = 1;
    size_t best_right = 0;
    FILE *file = open_or_die(training_path, "r");
    struct images raw = read_images(file, training_path, 0, ',', false, DIGITS - 1, DARKEST);
    fclose(file);

    printf("of %zu images, recognised from those of other groups\n", raw.count);
    printf("neighbours      1      3      5      7\n");
    for (size_t b = 0; b < sizeof(blurs) / sizeof(blurs[0]); b++) {
        size_t right[NEIGHBOURS_LIMIT + 1] = {0};
        validate(&raw, blurs[b], right);
        printf("blur %2d%%  ", blurs[b]);
        for (int k = 1; k <= NEIGHBOURS_LIMIT; k += 2) {
            printf(" %6zu", right[k]);
            if (right[k] > best_right) {
                best_right = right[k];
                best_blur = blurs[b];
                best_neighbours = k;
            }
        }
        putchar('\n');
    }
    printf("chosen: blur %d%%, neighbours %d\n", best_blur, best_neighbours);
    write_model(model_path, &raw, best_blur, best_neighbours);
    free(raw.list);
    close_or_die(stdout, "standard output");
    return EXIT_SUCCESS;
}

static int classify(const char *model_path, const char *batch_path)
{
    int blur;
    int neighbours;
    FILE *file = open_or_die(model_path, "r");
    if (fscanf(file, MODEL_HEADER " blur %d neighbours %d", &blur, &neighbours) != 2 ||
        getc(file) != '\n' || blur < 0 || blur > BLUR_LIMIT || neighbours < 1 ||
        neighbours > NEIGHBOURS_LIMIT)
        die("%s: not a model", model_path);
    struct images examples = read_images(file, model_path, 3, ' ', true, DIGITS - 1, VALUE_LIMIT);
    fclose(file);

    file = open_or_die(batch_path, "r");
    struct images batch = read_images(file, batch_path, 0, ',', true, IMAGES_LIMIT, DARKEST);
    fclose(file);

    for (size_t i = 0; i < batch.count; i++) {
        struct neighbour nearest[NEIGHBOURS_LIMIT];
        find_neighbours(&examples, &batch.list[i], blur, 0, 0, nearest);
        printf("%ld %ld\n", batch.list[i].label, vote(nearest, neighbours));
    }
    free(batch.list);
    free(examples.list);
    close_or_die(stdout, "standard output");
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "train") == 0)
        return train(argv[2], argv[3]);
    if (argc == 4 && strcmp(argv[1], "classify") == 0)
        return classify(argv[2], argv[3]);
    die("usage: digits train TRAINING MODEL | digits classify MODEL BATCH");
}
