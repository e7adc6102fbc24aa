// One instruction set's table of kernels. Included last in each set's file; runs only where the set does.
#pragma once

#include "../kernels.h"
#if __has_include("elements.inl")
#include "elements.inl"
#endif
#if __has_include("norms.inl")
#include "norms.inl"
#endif
#if __has_include("recurrences.inl")
#include "recurrences.inl"
#endif
#if __has_include("stream.inl")
#include "stream.inl"
#endif
#if __has_include("linear.inl")
#include "linear.inl"  // gives: static void fill_linear(Kernels&), which sets encode and linear
#define ROOKERY_LINEAR
#endif

#define ROOKERY_STRING_(x) #x
#define ROOKERY_STRING(x) ROOKERY_STRING_(x)

namespace rookery::ROOKERY_ISA {

void fill(Kernels& table) {
    table.name = ROOKERY_STRING(ROOKERY_ISA);
#ifdef ROOKERY_LINEAR
    fill_linear(table);
#endif
}

}  // namespace rookery::ROOKERY_ISA
