// What training needs beyond the recurrences themselves.
#pragma once

#include "training4.inl"
#include "training6.inl"
#include "training7.inl"

namespace rookery::ROOKERY_ISA {

static void fill_training(Kernels& table) {
    table.scratch4 = scratch4;
    table.wkv4_backward = wkv4_backward;
    table.scratch6 = scratch6;
    table.wkv6_backward = wkv6_backward;
    table.scratch7 = scratch7;
    table.wkv7_backward = wkv7_backward;
}

}  // namespace rookery::ROOKERY_ISA
