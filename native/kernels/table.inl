// One instruction set's table of kernels. Included last in each set's file; runs only where the set does.
#pragma once

#include "../kernels.h"
#include "elements.inl"
#include "linear.inl"
#include "norms.inl"
#include "recurrences.inl"
#include "stream.inl"
#include "training.inl"

#define ROOKERY_STRING_(x) #x
#define ROOKERY_STRING(x) ROOKERY_STRING_(x)

namespace rookery::ROOKERY_ISA {

void fill(Kernels& table) {
    table.name = ROOKERY_STRING(ROOKERY_ISA);
    fill_elements(table);
    fill_norms(table);
    fill_recurrences(table);
    fill_linear(table);
    fill_training(table);
    table.stream = stream;
}

}  // namespace rookery::ROOKERY_ISA
