// Runs cases.
#pragma once

#include "case.h"
#include "include/mtlkit.h"

// Runs a case through the C interface; throws its error messages.
void run_forward(Case& c, mtlkit_pool* pool);

// Runs a case forward and backward by the kernels' own structures; returns false if the operator has none here.
bool run_backward(Case& c, int threads);

// Makes calls with invalid arguments; describes those that were not rejected properly.
std::vector<std::string> check_refusals();
