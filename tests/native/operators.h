// How cases run.
#pragma once

#include "case.h"
#include "include/mtlkit.h"

// Runs a case by the C interface; throws what it refuses.
void run_forward(Case& c, mtlkit_pool* pool);

// Runs a case forward and backward by the kernels' own structures; false where the operator has none here.
bool run_backward(Case& c, int threads);

// Calls with arguments that are wrong; the words on what was not refused as it should be.
std::vector<std::string> check_refusals();
