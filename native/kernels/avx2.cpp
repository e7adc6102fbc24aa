// Every kernel for the instruction set "avx2".
#define ROOKERY_ISA avx2
#include "isa_avx2.h"
#include "table.inl"
