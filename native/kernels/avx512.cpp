// Every kernel for the instruction set "avx512".
#define ROOKERY_ISA avx512
#include "isa_avx512.h"
#include "table.inl"
