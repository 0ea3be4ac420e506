/* What every unit test includes, in the order cmocka wants. */
#ifndef MOBULA_TESTS_UNIT_H
#define MOBULA_TESTS_UNIT_H

/* clang-format off: cmocka needs the others before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#endif
