/* The counts behind check.h, one set a program: helpers that check and the cases that call them
 * speak of the same case. */
#include "tests/check.h"

int check_passed, check_failed, check_skipped;
bool check_case_failed, check_case_skipped;
