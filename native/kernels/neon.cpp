// Every kernel for the instruction set "neon".
#define ROOKERY_ISA neon
#include "isa_neon.h"
#include "table.inl"
